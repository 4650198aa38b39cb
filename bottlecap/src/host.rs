//! What of this host a bottle is made from, looked up once.

use std::fs;
use std::path::{Path, PathBuf};

use crate::layout::{Entry, HostTree};

const PROGRAMS: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

const ETC_FILES: [&str; 16] = [
    "bash.bashrc",
    "debian_version",
    "gai.conf",
    "host.conf",
    "inputrc",
    "ld.so.cache",
    "ld.so.conf",
    "locale.alias",
    "localtime",
    "lsb-release",
    "mime.types",
    "os-release",
    "profile",
    "protocols",
    "services",
    "timezone",
];
const ETC_DIRECTORIES: [&str; 15] = [
    "alternatives",
    "fonts",
    "java-11-openjdk",
    "java-17-openjdk",
    "java-21-openjdk",
    "java-25-openjdk",
    "java",
    "ld.so.conf.d",
    "maven",
    "perl",
    "python3",
    "python3.11",
    "python3.12",
    "python3.13",
    "terminfo",
];
const OPENSSL: &str = "/etc/ssl/openssl.cnf";

/// Where distributions keep the roots of trust, as one file.
const ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Looks at the host.
#[must_use]
pub fn tree() -> HostTree {
    let entry = |path: &&str| {
        let path = PathBuf::from(path);
        let found = fs::symlink_metadata(&path).ok()?;
        let entry =
            if found.is_symlink() { Entry::Link(fs::read_link(&path).ok()?) } else { Entry::Directory };
        Some((path, entry))
    };
    let etc = |name: &&str| Path::new("/etc").join(name);
    let mut tree = HostTree {
        programs: PROGRAMS.iter().filter_map(entry).collect(),
        etc_files: Vec::new(),
        etc_directories: ETC_DIRECTORIES.iter().map(etc).filter(|path| is_directory(path)).collect(),
        etc_links: Vec::new(),
    };
    for path in ETC_FILES.iter().map(etc).chain([PathBuf::from(OPENSSL)]) {
        match fs::read_link(&path) {
            Ok(target) if path.ends_with("localtime") => tree.etc_links.push((path, target)),
            Ok(_) | Err(_) if path.is_file() => tree.etc_files.push(path),
            Ok(_) | Err(_) => {}
        }
    }
    tree
}

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// The host's roots of trust, PEM; empty where it keeps none.
#[must_use]
pub fn roots() -> String {
    ROOTS.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default()
}

/// The homes of people on this host, from the text of /etc/passwd: of root, and of users from 1000 on.
#[must_use]
pub fn homes(passwd: &str) -> Vec<PathBuf> {
    let home = |line: &str| {
        let mut fields = line.split(':');
        let uid: u32 = fields.nth(2)?.parse().ok()?;
        let home = PathBuf::from(fields.nth(2)?);
        ((uid == 0 || (1000..65534).contains(&uid)) && home.is_absolute()).then_some(home)
    };
    passwd.lines().filter_map(home).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_those_of_people() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nwww:x:33:33::/var/www:/bin/sh\ndana:x:1000:1000::/home/dana:/bin/sh\n\
                      nobody:x:65534:65534::/nonexistent:/bin/sh\nbroken\n";
        assert_eq!(homes(passwd), [PathBuf::from("/root"), PathBuf::from("/home/dana")]);
    }
}
