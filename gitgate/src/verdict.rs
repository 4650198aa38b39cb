//! The report that ends a push: for each refused ref the reason, in the place where git shows it.
//!
//! Git knows only that a hook declined, and says so of every ref. The daemon knows why, and puts
//! that in: `! [remote rejected] main -> main (force-push is not allowed)`.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::git::printable;
use crate::pktline;

/// How long the hook's last words may take from it to the daemon.
const REASONS_TIMEOUT: Duration = Duration::from_secs(2);
const REPORT_MAX_BYTES: usize = 8 << 20;
const REASON_MAX_CHARS: usize = 200;
const PACKET_MAX_BYTES: usize = 65_520;
/// What a packet of a band may carry at most.
const BAND_MAX_BYTES: usize = 60_000;
const HEAD_BYTES: usize = 4;
const DECLINED: &str = "pre-receive hook declined";
const REPORT_BAND: u8 = 1;

/// Why refs were refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reasons {
    /// Of these refs it is known.
    pub(crate) refs: BTreeMap<String, String>,
    /// Why the others went with them.
    pub(crate) others: String,
}

impl Reasons {
    fn of(&self, name: &str) -> String {
        let reason = printable(self.refs.get(name).unwrap_or(&self.others)).replace(['\n', '\t'], " ");
        reason.chars().take(REASON_MAX_CHARS).collect()
    }
}

/// Copies git's side of a push to the client and puts the reasons into its report.
///
/// `advertised` says whether an advertisement comes first, which is passed on as it is.
pub(crate) async fn pass(
    mut git: impl AsyncRead + Unpin,
    mut client: impl AsyncWrite + Unpin,
    reasons: watch::Receiver<Option<Reasons>>,
    advertised: bool,
) -> std::io::Result<()> {
    if advertised {
        while let Some(packet) = packet(&mut git).await? {
            client.write_all(&packet).await?;
            if packet.len() == HEAD_BYTES {
                break;
            }
        }
    }
    let mut report = Vec::new();
    while let Some(packet) = packet(&mut git).await? {
        let payload = &packet[HEAD_BYTES..];
        match payload.first() {
            Some(&REPORT_BAND) if report.len() < REPORT_MAX_BYTES => {
                report.extend_from_slice(&payload[1..]);
                // It may be cut anywhere; its own flush packet ends it.
                if is_whole(&report) {
                    let told = with_reasons(&report, &reasons).await;
                    report.clear();
                    for part in told.chunks(BAND_MAX_BYTES) {
                        let part = [&[REPORT_BAND][..], part].concat();
                        client.write_all(&pktline::line(&part)).await?;
                    }
                }
            }
            // A client without bands gets the lines of the report themselves.
            Some(b'n' | b'o' | b'u') => client.write_all(&with_reasons(&packet, &reasons).await).await?,
            _ => client.write_all(&packet).await?,
        }
    }
    if !report.is_empty() {
        client.write_all(&pktline::line(&[&[REPORT_BAND][..], &report].concat())).await?;
    }
    client.shutdown().await
}

/// One packet with its head; none at the end.
async fn packet(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<Vec<u8>>> {
    let mut packet = vec![0; HEAD_BYTES];
    match stream.read_exact(&mut packet).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = std::str::from_utf8(&packet).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
    let length = length.ok_or_else(|| std::io::Error::other("git did not send a packet"))?;
    if length > PACKET_MAX_BYTES {
        return Err(std::io::Error::other("git sent a packet that is too long"));
    }
    if length > HEAD_BYTES {
        packet.resize(length, 0);
        stream.read_exact(&mut packet[HEAD_BYTES..]).await?;
    }
    Ok(Some(packet))
}

/// Whether these are packets up to a flush packet, and nothing after it.
fn is_whole(report: &[u8]) -> bool {
    let mut rest = report;
    loop {
        let head = rest.get(..HEAD_BYTES).and_then(|head| std::str::from_utf8(head).ok());
        match head.and_then(|head| usize::from_str_radix(head, 16).ok()) {
            Some(0) => return rest.len() == HEAD_BYTES,
            Some(length) if length > HEAD_BYTES && length <= rest.len() => rest = &rest[length..],
            _ => return false,
        }
    }
}

/// The packets of a report with the reasons in them; as they are where there are none.
async fn with_reasons(report: &[u8], reasons: &watch::Receiver<Option<Reasons>>) -> Vec<u8> {
    if !String::from_utf8_lossy(report).contains(DECLINED) {
        return report.to_vec();
    }
    let mut reasons = reasons.clone();
    let reasons = match timeout(REASONS_TIMEOUT, reasons.wait_for(Option::is_some)).await {
        Ok(Ok(known)) => known.clone().unwrap_or_default(),
        Ok(Err(_)) | Err(_) => return report.to_vec(),
    };
    let mut told = Vec::new();
    let mut rest = report;
    while let Ok(Some(packet)) = packet(&mut rest).await {
        told.extend(explained(&packet, &reasons).unwrap_or(packet));
    }
    told
}

fn explained(packet: &[u8], reasons: &Reasons) -> Option<Vec<u8>> {
    let line = std::str::from_utf8(&packet[HEAD_BYTES..]).ok()?;
    let (name, word) = line.strip_prefix("ng ")?.split_once(' ')?;
    let reason = reasons.of(name);
    let declined = word.trim_end() == DECLINED && !reason.is_empty();
    declined.then(|| pktline::line(format!("ng {name} {reason}\n").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons() -> watch::Receiver<Option<Reasons>> {
        let refs = BTreeMap::from([("refs/heads/a".to_owned(), "no\x1b[2J \nforce".to_owned())]);
        watch::channel(Some(Reasons { refs, others: "another ref was refused".to_owned() })).1
    }

    fn report() -> Vec<u8> {
        let lines = [
            "unpack ok\n",
            "ng refs/heads/a pre-receive hook declined\n",
            "ng refs/heads/b pre-receive hook declined\n",
            "ng refs/heads/c0000 stale info\n",
        ];
        [lines.map(|line| pktline::line(line.as_bytes())).concat(), b"0000".to_vec()].concat()
    }

    fn told() -> Vec<u8> {
        let lines = [
            "unpack ok\n",
            "ng refs/heads/a no[2J  force\n",
            "ng refs/heads/b another ref was refused\n",
            "ng refs/heads/c0000 stale info\n",
        ];
        [lines.map(|line| pktline::line(line.as_bytes())).concat(), b"0000".to_vec()].concat()
    }

    async fn passed(bytes: &[u8], advertised: bool) -> Vec<u8> {
        let mut out = Vec::new();
        pass(bytes, &mut out, reasons(), advertised).await.expect("it passes");
        out
    }

    #[tokio::test]
    async fn reasons_stand_where_git_shows_them_with_bands_cut_anywhere_and_without() {
        let advertisement = [pktline::line(b"1111 refs/heads/a\0report-status\n"), b"0000".to_vec()].concat();
        let banded = |report: &[u8]| pktline::line(&[&[REPORT_BAND][..], report].concat());
        let words = pktline::line(b"\x02git-gate: no\n");
        for cut in 1..report().len() {
            let (first, second) = (&report()[..cut], &report()[cut..]);
            let sent = [&advertisement[..], &words, &banded(first), &banded(second), b"0000"].concat();
            let seen = [&advertisement[..], &words, &banded(&told()), b"0000"].concat();
            assert_eq!(passed(&sent, true).await, seen, "cut at {cut}");
        }
        assert_eq!(passed(&report(), false).await, told());
    }

    #[tokio::test]
    async fn a_name_in_the_advertisement_is_no_report() {
        let advertisement = pktline::line(b"ng refs/heads/a pre-receive hook declined\n");
        assert_eq!(passed(&advertisement, true).await, advertisement);
    }
}
