//! The address of a repository, without what it must not tell the bottle.

/// `url` without passwords and tokens; `None` where it cannot be said which part of it is one.
pub(super) fn without_credentials(url: &str) -> Option<String> {
    if url.is_empty() || url.starts_with('-') || url.chars().any(|c| c.is_control() || c == '\\') {
        return None;
    }
    let Some((scheme, rest)) = url.split_once("://") else { return without_scheme(url) };
    if scheme.is_empty() || !scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)) {
        return None;
    }
    let scheme_says = scheme.to_ascii_lowercase();
    if scheme_says == "file" {
        return Some(url.to_owned());
    }
    // A token may stand in what is asked as well.
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let (user, host) = authority.rsplit_once('@').map_or(("", authority), |(user, host)| (user, host));
    if !is_host(host) {
        return None;
    }
    let user = user.split(':').next().unwrap_or_default();
    let is_ssh = matches!(scheme_says.as_str(), "ssh" | "git+ssh" | "ssh+git");
    // With HTTPS the user's name may be the token.
    let user = if is_ssh && !user.is_empty() { format!("{user}@") } else { String::new() };
    Some(format!("{scheme}://{user}{host}{path}"))
}

/// A path, or `user@host:path`, which has no place for a password.
fn without_scheme(url: &str) -> Option<String> {
    let place = |c| url.find(c).unwrap_or(url.len());
    let begins_as_path = place('/') < place(':');
    let has_helper = url.contains("::");
    let password = place(':') < place('@') && url.contains('@');
    (begins_as_path || !(has_helper || password)).then(|| url.to_owned())
}

/// A name or an address with a port or none: an `@` or `/` that was left in a password makes something else of it.
fn is_host(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address, port.strip_prefix(':').unwrap_or(port)),
        None => text.split_once(':').unwrap_or((text, "")),
    };
    let is_name = |c: char| c.is_alphanumeric() || "-._~%:".contains(c);
    !name.is_empty() && name.chars().all(is_name) && port.chars().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_and_no_token_of_an_address_is_kept() {
        for (url, kept) in [
            ("https://git.example.com/acme/web.git", Some("https://git.example.com/acme/web.git")),
            ("https://x:S3CRET@git.example.com/acme/web.git", Some("https://git.example.com/acme/web.git")),
            ("https://S3CRET@git.example.com:8443/web", Some("https://git.example.com:8443/web")),
            ("HTTP://S3CRET:@git.example.com", Some("HTTP://git.example.com")),
            ("https://a:S3@CRET@git.example.com/@scope/web", Some("https://git.example.com/@scope/web")),
            ("https://git.example.com/web?private_token=S3CRET#x", Some("https://git.example.com/web")),
            ("https://a:S3CRET/b@git.example.com/web", None),
            ("ssh://git:S3CRET@git.example.com:22/web", Some("ssh://git@git.example.com:22/web")),
            ("ssh://git@[2001:db8::1]:22/web", Some("ssh://git@[2001:db8::1]:22/web")),
            ("git@git.example.com:acme/web.git", Some("git@git.example.com:acme/web.git")),
            ("git:S3CRET@git.example.com:acme/web.git", None),
            ("https::https://a:S3CRET@git.example.com/web", None),
            ("ext::sh -c S3CRET", None),
            ("/srv/git/a:b@c::d.git", Some("/srv/git/a:b@c::d.git")),
            ("file:///srv/git/web.git", Some("file:///srv/git/web.git")),
            ("--upload-pack=S3CRET", None),
        ] {
            assert_eq!(without_credentials(url).as_deref(), kept, "{url}");
        }
    }
}
