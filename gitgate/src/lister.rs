//! Asking an upstream behind ssh what it shows: one `git-upload-pack`, one question, no git of our own.
//!
//! Protocol v2 is asked for; an upstream that knows only the older ones shows everything at once.

use git2::Oid;
use repos::{FetchRules, Ssh};
use tokio::io::{AsyncBufRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};

use crate::fault::Fault;
use crate::git::printable;
use crate::listing::{Gathering, Listing, Unlisted};
use crate::pktline::{self, Packet};
use crate::ssh::{Ask, Remote, Session};

/// How much an upstream may say, also of what is not taken.
const SAID_MAX_BYTES: u64 = 1 << 30;
/// The name of an object in a repository of the newer format.
const SHA256_DIGITS: usize = 64;
const BUFFER_BYTES: usize = 64 << 10;
/// How many prefixes are worth naming: a server that is given more ignores them all.
const PREFIXES_MAX: usize = 1000;

/// Why there is no listing.
#[derive(Debug)]
pub(crate) enum NoListing {
    /// Upstream did not give one.
    Upstream(Fault),
    /// It has more refs than are taken.
    Refs,
    /// It has a ref with a longer name than is taken.
    RefName,
    /// Its objects are named by SHA-256.
    ObjectFormat,
}

impl From<Unlisted> for NoListing {
    fn from(reason: Unlisted) -> Self {
        match reason {
            Unlisted::Much => Self::Refs,
            Unlisted::Name => Self::RefName,
            Unlisted::Malformed => Self::Upstream(strange()),
        }
    }
}

/// What an upstream shows now, asked through this session.
pub(crate) async fn ask(session: &Session, ssh: &Ssh, rules: &FetchRules) -> Result<Listing, NoListing> {
    let remote = session.run("git-upload-pack", ssh, Ask::V2).await.map_err(NoListing::Upstream)?;
    let Remote { mut stdin, stdout, over } = remote;
    let mut stdout = BufReader::with_capacity(BUFFER_BYTES, stdout.take(SAID_MAX_BYTES));
    let told = converse(&mut stdout, &mut stdin, rules).await;
    let all = stdout.get_ref().limit() == 0;
    let remote = Remote { stdin, stdout: stdout.into_inner().into_inner(), over };
    match told {
        Ok(listing) => {
            remote.settle();
            Ok(listing)
        }
        Err(Broken::Told(reason)) => Err(reason),
        Err(Broken::Off) if all => Err(NoListing::Refs),
        Err(Broken::Off) => Err(NoListing::Upstream(remote.fault().await)),
    }
}

pub(crate) fn strange() -> Fault {
    Fault::refused("it does not speak git's protocol (does its login print something?)")
}

/// Why a conversation with upstream came to nothing.
pub(crate) enum Broken {
    /// It is known why.
    Told(NoListing),
    /// The connection ended.
    Off,
}

impl From<NoListing> for Broken {
    fn from(reason: NoListing) -> Self {
        Self::Told(reason)
    }
}

impl From<Unlisted> for Broken {
    fn from(reason: Unlisted) -> Self {
        Self::Told(reason.into())
    }
}

pub(crate) async fn next(stream: &mut (impl AsyncBufRead + Unpin)) -> Result<Packet, Broken> {
    match pktline::next(stream).await {
        Ok(Some(packet)) => match packet.text().and_then(|text| text.strip_prefix(b"ERR ")) {
            Some(error) => {
                let words = printable(&String::from_utf8_lossy(error)).trim().to_owned();
                Err(Broken::Told(NoListing::Upstream(Fault::refused(words))))
            }
            None => Ok(packet),
        },
        Ok(None) => Err(Broken::Off),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            Err(Broken::Told(NoListing::Upstream(strange())))
        }
        Err(_) => Err(Broken::Off),
    }
}

async fn converse(
    from: &mut (impl AsyncBufRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    rules: &FetchRules,
) -> Result<Listing, Broken> {
    let first = next(from).await?;
    let mut gathering = Gathering::new(rules);
    if first.text() == Some(b"version 2") {
        let question = question(&capabilities(from).await?, rules);
        to.write_all(&question).await.map_err(|_| Broken::Off)?;
        loop {
            match next(from).await? {
                Packet::Flush => break,
                Packet::Data(line) => shown(&mut gathering, &line)?,
                Packet::Delimiter | Packet::End => return Err(NoListing::Upstream(strange()).into()),
            }
        }
    } else {
        let mut packet = first;
        if packet.text() == Some(b"version 1") {
            packet = next(from).await?;
        }
        while packet != Packet::Flush {
            let line = packet.text().ok_or(NoListing::Upstream(strange()))?;
            advertised(&mut gathering, line)?;
            packet = next(from).await?;
        }
        let _ = to.write_all(b"0000").await;
    }
    Ok(gathering.end()?)
}

/// What an upstream can do in protocol v2.
#[derive(Debug, Default)]
struct Capabilities {
    unborn: bool,
}

async fn capabilities(from: &mut (impl AsyncBufRead + Unpin)) -> Result<Capabilities, Broken> {
    let mut capabilities = Capabilities::default();
    loop {
        let packet = next(from).await?;
        let Some(line) = packet.text() else {
            return if packet == Packet::Flush {
                Ok(capabilities)
            } else {
                Err(NoListing::Upstream(strange()).into())
            };
        };
        if let Some(format) = line.strip_prefix(b"object-format=")
            && format != b"sha1"
        {
            return Err(NoListing::ObjectFormat.into());
        }
        if let Some(features) = line.strip_prefix(b"ls-refs=") {
            capabilities.unborn = features.split(|b| *b == b' ').any(|feature| feature == b"unborn");
        }
    }
}

fn question(capabilities: &Capabilities, rules: &FetchRules) -> Vec<u8> {
    let mut lines = vec![pktline::line(b"command=ls-refs\n"), Packet::Delimiter.bytes()];
    lines.extend([pktline::line(b"peel\n"), pktline::line(b"symrefs\n")]);
    if capabilities.unborn {
        lines.push(pktline::line(b"unborn\n"));
    }
    if rules.allow.len() < PREFIXES_MAX {
        lines.push(pktline::line(b"ref-prefix HEAD\n"));
        for pattern in &rules.allow {
            let prefix = pattern.as_str().split('*').next().unwrap_or_default();
            lines.push(pktline::line(format!("ref-prefix {prefix}\n").as_bytes()));
        }
    }
    lines.push(Packet::Flush.bytes());
    lines.concat()
}

/// `OID NAME [symref-target:NAME] [peeled:OID]`
fn shown(gathering: &mut Gathering<'_>, line: &[u8]) -> Result<(), Broken> {
    // What is no text is no name that is served.
    let Ok(line) = std::str::from_utf8(line.strip_suffix(b"\n").unwrap_or(line)) else {
        return Ok(());
    };
    let mut words = line.split(' ');
    let (Some(value), Some(name)) = (words.next(), words.next()) else {
        return Err(NoListing::Upstream(strange()).into());
    };
    let (mut peeled, mut target) = (None, None);
    for attribute in words {
        if let Some(oid) = attribute.strip_prefix("peeled:") {
            peeled = Some(object(oid)?);
        } else if let Some(name) = attribute.strip_prefix("symref-target:") {
            target = Some(name);
        }
    }
    match (name, target) {
        ("HEAD", Some(target)) => gathering.head(target),
        _ if value == "unborn" => {}
        _ => gathering.add(name, object(value)?, peeled)?,
    }
    Ok(())
}

/// `OID NAME`, behind the first of which stands what upstream can do.
fn advertised(gathering: &mut Gathering<'_>, line: &[u8]) -> Result<(), Broken> {
    let mut parts = line.splitn(2, |b| *b == 0);
    let entry = parts.next().unwrap_or_default();
    let able = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    for word in able.split(' ') {
        if word.strip_prefix("object-format=").is_some_and(|format| format != "sha1") {
            return Err(NoListing::ObjectFormat.into());
        }
        if let Some(target) = word.strip_prefix("symref=HEAD:") {
            gathering.head(target);
        }
    }
    let Ok(entry) = std::str::from_utf8(entry) else {
        return Ok(());
    };
    let (value, name) = entry.split_once(' ').ok_or(NoListing::Upstream(strange()))?;
    if value == "shallow" {
        return Ok(());
    }
    let oid = object(value)?;
    match name.strip_suffix("^{}") {
        // An empty repository has this line to say what it can do.
        Some("capabilities") => Ok(()),
        Some(name) => {
            gathering.peel(name, oid);
            Ok(())
        }
        None => Ok(gathering.add(name, oid, None)?),
    }
}

pub(crate) fn object(text: &str) -> Result<Oid, Broken> {
    if text.len() == SHA256_DIGITS {
        return Err(NoListing::ObjectFormat.into());
    }
    Oid::from_str(text).map_err(|_| NoListing::Upstream(strange()).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listing::{Head, Shown};

    const A: &str = "1111111111111111111111111111111111111111";
    const B: &str = "2222222222222222222222222222222222222222";

    fn rules() -> FetchRules {
        let allow = ["refs/heads/*", "refs/tags/*"].iter().filter_map(|p| repos::RefPattern::parse(p).ok());
        FetchRules { allow: allow.collect(), stale: repos::Stale::Refuse }
    }

    fn packets(lines: &[&str]) -> Vec<u8> {
        lines
            .iter()
            .map(|line| if line.is_empty() { b"0000".to_vec() } else { pktline::line(line.as_bytes()) })
            .collect::<Vec<_>>()
            .concat()
    }

    async fn told(lines: &[&str]) -> (Result<Listing, Broken>, String) {
        let (bytes, mut asked) = (packets(lines), Vec::new());
        let listing = converse(&mut &bytes[..], &mut asked, &rules()).await;
        (listing, String::from_utf8_lossy(&asked).into_owned())
    }

    fn expected(listing: &Listing) {
        let oid = |text: &str| Oid::from_str(text).expect("a name");
        let main = Shown { name: "refs/heads/main", oid: oid(A), peeled: None };
        let tag = Shown { name: "refs/tags/v1", oid: oid(A), peeled: Some(oid(B)) };
        assert_eq!(listing.iter().collect::<Vec<_>>(), [main, tag]);
        assert_eq!(listing.head, Head::Branch("refs/heads/main".into()));
    }

    #[tokio::test]
    async fn every_protocol_version_gives_the_same_listing() {
        let (head, main, tag) = (
            format!("{A} HEAD symref-target:refs/heads/main\n"),
            format!("{A} refs/heads/main\n"),
            format!("{A} refs/tags/v1 peeled:{B}\n"),
        );
        let (listing, asked) =
            told(&["version 2\n", "ls-refs=unborn\n", "object-format=sha1\n", "", &head, &main, &tag, ""])
                .await;
        expected(&listing.ok().expect("a listing"));
        assert!(asked.contains("unborn") && asked.contains("ref-prefix refs/heads/\n"), "{asked}");
        let (first, main, tag, peeled) = (
            format!("{A} HEAD\0multi_ack symref=HEAD:refs/heads/main object-format=sha1\n"),
            format!("{A} refs/heads/main\n"),
            format!("{A} refs/tags/v1\n"),
            format!("{B} refs/tags/v1^{{}}\n"),
        );
        expected(&told(&[&first, &main, &tag, &peeled, ""]).await.0.ok().expect("a listing"));
        expected(&told(&["version 1\n", &first, &main, &tag, &peeled, ""]).await.0.ok().expect("a listing"));
    }

    #[tokio::test]
    async fn an_upstream_that_says_no_or_something_else_gives_no_listing() {
        let fault = |told: Result<Listing, Broken>| match told {
            Err(Broken::Told(NoListing::Upstream(fault))) => fault.words,
            Err(Broken::Told(NoListing::ObjectFormat)) => "sha256".to_owned(),
            Err(Broken::Off) => "off".to_owned(),
            Err(Broken::Told(_)) | Ok(_) => "something else".to_owned(),
        };
        assert_eq!(fault(told(&["ERR no such\x1b[2J repository\n"]).await.0), "no such[2J repository");
        assert_eq!(fault(told(&["version 2\n", "object-format=sha256\n", ""]).await.0), "sha256");
        assert_eq!(fault(told(&["version 2\n", "", &format!("{A} refs/heads/a\n")]).await.0), "off");
        let mut noise = &b"Welcome to this machine\n"[..];
        let noise = converse(&mut noise, &mut Vec::new(), &rules()).await;
        assert!(fault(noise).contains("does its login print something"));
    }

    #[tokio::test]
    async fn an_empty_repository_shows_where_its_head_will_be() {
        let unborn =
            ["version 2\n", "ls-refs=unborn\n", "", "unborn HEAD symref-target:refs/heads/main\n", ""];
        let listing = told(&unborn).await.0.ok().expect("a listing");
        assert_eq!((listing.len(), &listing.head), (0, &Head::Branch("refs/heads/main".into())));
        let zero = format!("{} capabilities^{{}}\0object-format=sha1\n", "0".repeat(40));
        assert_eq!(told(&[&zero, ""]).await.0.ok().expect("a listing").len(), 0);
    }
}
