//! What a daemon says of itself: the datagrams of sd_notify(3), parsed.

/// What a daemon reported with its last `READY=1`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Number of the configuration in force.
    pub(crate) generation: Option<u64>,
    /// `sha256:` and the hexadecimal digest of the configuration in force.
    pub(crate) digest: Option<String>,
    /// Why the last reload was refused, as `file:line:column: text`.
    pub(crate) reload_error: Option<String>,
}

/// One understood message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// `READY=1`: it serves.
    Ready(Report),
    /// `RELOADING=1`: it reads its configuration again, since this time of the monotonic clock, in microseconds.
    Reloading(Option<u64>),
    /// `WATCHDOG=1`: it is alive.
    Alive,
}

/// Longest error text that is kept from a daemon.
const ERROR_LIMIT: usize = 1024;

/// The message in one datagram; `None` when it says nothing that matters here (`STATUS=`, `STOPPING=1`).
pub(crate) fn parse(datagram: &[u8]) -> Option<Message> {
    let text = std::str::from_utf8(datagram).ok()?;
    let mut ready = false;
    let mut reloading = false;
    let mut alive = false;
    let mut began = None;
    let mut report = Report::default();
    for line in text.lines() {
        match line.split_once('=') {
            Some(("READY", "1")) => ready = true,
            Some(("RELOADING", "1")) => reloading = true,
            Some(("WATCHDOG", "1")) => alive = true,
            Some(("MONOTONIC_USEC", value)) => began = value.parse().ok(),
            Some(("X_GENERATION", value)) => report.generation = value.parse().ok(),
            Some(("X_DIGEST", value)) => report.digest = digest(value),
            Some(("X_RELOAD_ERROR", value)) => report.reload_error = Some(plain(value)),
            Some(_) | None => {}
        }
    }
    match (ready, reloading) {
        (true, _) => Some(Message::Ready(report)),
        (false, true) => Some(Message::Reloading(began)),
        (false, false) => alive.then_some(Message::Alive),
    }
}

fn digest(value: &str) -> Option<String> {
    let hex = value.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| value.to_owned())
}

fn plain(value: &str) -> String {
    value.chars().filter(|letter| !letter.is_control()).take(ERROR_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_carries_generation_and_digest() {
        let hex = "a".repeat(64);
        let datagram = format!("READY=1\nX_GENERATION=3\nX_DIGEST=sha256:{hex}\n");
        assert_eq!(
            parse(datagram.as_bytes()),
            Some(Message::Ready(Report {
                generation: Some(3),
                digest: Some(format!("sha256:{hex}")),
                reload_error: None
            }))
        );
    }

    #[test]
    fn a_refused_reload_is_ready_with_an_error() {
        assert_eq!(
            parse(b"READY=1\nX_GENERATION=2\nX_RELOAD_ERROR=routes.yaml:5:5: unknown field \x1b[1m`metods`"),
            Some(Message::Ready(Report {
                generation: Some(2),
                digest: None,
                reload_error: Some("routes.yaml:5:5: unknown field [1m`metods`".to_owned()),
            }))
        );
    }

    #[test]
    fn reloading_alone_is_reloading() {
        assert_eq!(parse(b"RELOADING=1\nMONOTONIC_USEC=12"), Some(Message::Reloading(Some(12))));
        assert_eq!(parse(b"RELOADING=1"), Some(Message::Reloading(None)));
    }

    #[test]
    fn a_sign_of_life_is_one_unless_there_is_more_to_say() {
        assert_eq!(parse(b"WATCHDOG=1"), Some(Message::Alive));
        assert_eq!(parse(b"WATCHDOG=trigger"), None);
        assert_eq!(parse(b"WATCHDOG=1\nREADY=1"), Some(Message::Ready(Report::default())));
    }

    #[test]
    fn other_words_and_bytes_that_are_not_text_say_nothing() {
        assert_eq!(parse(b"STATUS=hello\nREADY=0"), None);
        assert_eq!(parse(b"READY=1\n\xff"), None);
        assert_eq!(parse(b"READY=1\nX_DIGEST=sha256:zz"), Some(Message::Ready(Report::default())));
    }
}
