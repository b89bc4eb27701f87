//! What the command line must not show: every user of the host sees it with `ps`, for as long as the program runs. Edge: begins the program
//! anew, where that is needed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Where a password is in the value of `flag` (a URL with a user in it), begins the program anew with the value in its environment
/// `variable` instead, which only this user and root can read. It stays the same process. To be called first of all.
///
/// # Errors
/// It cannot be begun anew: the password is still to be seen.
pub fn hide(flag: &str, variable: &str) -> io::Result<()> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let Some((kept, value)) = without_password(&arguments, flag) else { return Ok(()) };
    let mut again = Command::new(std::env::current_exe()?);
    if let Some((name, rest)) = kept.split_first() {
        again.arg0(name).args(rest);
    }
    Err(again.env(variable, value).exec())
}

/// The arguments without the flag, and its value; `None` where that has no password in it, or the flag is not there or not as it should
/// be, which is told elsewhere.
fn without_password(arguments: &[OsString], flag: &str) -> Option<(Vec<OsString>, OsString)> {
    let mut kept = Vec::with_capacity(arguments.len());
    let mut value = None;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let found = if argument == "--" {
            kept.push(argument.clone());
            kept.extend(rest.cloned());
            break;
        } else if argument == flag {
            Some(rest.next()?.clone())
        } else {
            let joined = argument.as_bytes().strip_prefix(flag.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
            joined.map(|value| OsString::from_vec(value.to_vec()))
        };
        match found {
            // A flag that is given twice is an error.
            Some(_) if value.is_some() => return None,
            Some(found) => value = Some(found),
            None => kept.push(argument.clone()),
        }
    }
    value.filter(|value| has_password(value)).map(|value| (kept, value))
}

/// A URL has an `@` behind its user and password, and nowhere else that an endpoint may have one.
fn has_password(value: &OsStr) -> bool {
    value.as_bytes().contains(&b'@')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without(arguments: &str) -> Option<(String, String)> {
        let arguments: Vec<OsString> = arguments.split(' ').map(OsString::from).collect();
        let (kept, value) = without_password(&arguments, "--etcd")?;
        let kept: Vec<_> = kept.iter().map(|argument| argument.to_str().unwrap()).collect();
        Some((kept.join(" "), value.into_string().unwrap()))
    }

    #[test]
    fn a_password_leaves_the_arguments_and_all_else_stays() {
        let url = "http://u:p@h:1,http://u:p@i:1";
        for given in [format!("prog list --etcd {url} --json x"), format!("prog list --etcd={url} --json x")] {
            assert_eq!(without(&given), Some(("prog list --json x".to_owned(), url.to_owned())), "{given}");
        }
        let behind = format!("prog --etcd {url} -- --etcd x@y");
        assert_eq!(without(&behind), Some(("prog -- --etcd x@y".to_owned(), url.to_owned())));
    }

    #[test]
    fn what_has_no_password_or_is_wrong_is_left_as_it_is() {
        for given in [
            "prog",
            "prog --etcd",
            "prog --etcd http://h:1",
            "prog --etcd-user a@b",
            "prog -- --etcd http://u:p@h",
            "prog --etcd http://u:p@h --etcd http://u:p@i",
        ] {
            assert_eq!(without(given), None, "{given}");
        }
    }
}
