//! `volund inject`.

use super::args::Global;
use super::client::Client;
use super::{CliError, Outcome};
use crate::http::InjectRequest;
use crate::model::fault::Fault;
use crate::model::{PoolName, VolumeName};

/// What ends every fault.
const CLEAR: &str = "clear";

pub(super) fn run(
    global: &Global,
    (volume, pool): (&VolumeName, &PoolName),
    words: &[String],
) -> Result<Outcome, CliError> {
    let faults = read(words).map_err(CliError::Failed)?;
    let request = InjectRequest {
        volume: volume.clone(),
        pool: pool.clone(),
        faults: faults.iter().map(ToString::to_string).collect(),
    };
    Client::new(&global.admin_socket())?.post::<_, ()>("/v1/inject", &request)?;
    let place = format!("volume \"{volume}\" in pool \"{pool}\"");
    Ok(Outcome::ok(if request.faults.is_empty() {
        format!("nothing is broken on purpose any more on {place}\n")
    } else {
        let faults = request.faults.join(" ");
        format!(
            "{place} now suffers {faults}, until `volund inject {volume} {pool} clear` or a restart\n"
        )
    }))
}

fn read(words: &[String]) -> Result<Vec<Fault>, String> {
    if words.iter().any(|word| word == CLEAR) {
        return match words {
            [_] => Ok(Vec::new()),
            _ => Err("clear stands alone".to_owned()),
        };
    }
    let faults = words.iter().map(|word| word.parse::<Fault>());
    faults
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clear_stands_alone() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<String>>();
        assert_eq!(read(&words("clear")), Ok(Vec::new()));
        assert_eq!(
            read(&words("delay=1ms error=read,count=2")).unwrap().len(),
            2
        );
        assert!(read(&words("clear hang")).is_err());
        assert!(read(&words("clean")).is_err());
    }
}
