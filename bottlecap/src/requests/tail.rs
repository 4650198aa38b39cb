//! Watching for requests, and telling a person about them. Nothing here can approve.

use std::io::Write;
use std::path::Path;

use jiff::Timestamp;
use proposal::State;
use proposal::show;
use proposal::wire::Requests;

use super::notify::{Messenger, Notify};
use super::{Form, client, json, print};
use crate::fault::Fault;

/// Prints what waits, and then each request that changes, until the daemon ends.
pub(super) fn tail(socket: &Path, form: Form, notify: &Notify, out: &mut impl Write) -> Result<(), Fault> {
    let messenger = Messenger::start(notify)?;
    client::tail(socket, |Requests { requests }| {
        for view in &requests {
            match form {
                Form::Json => json(out, view)?,
                Form::Text => print(out, &show::list(std::slice::from_ref(view), Timestamp::now()))?,
            }
        }
        for view in requests.into_iter().filter(|view| view.state == State::Pending) {
            if notify.bell {
                print(out, "\u{7}")?;
            }
            messenger.tell(view);
        }
        Ok(())
    })
}
