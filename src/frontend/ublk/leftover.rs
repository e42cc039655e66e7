//! Devices that an earlier run of this daemon left behind: found by their recorded number, known by their mark.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use libublk::ctrl::UblkCtrl;
use libublk::sys;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use super::control::UblkControl;
use super::device::{
    CONTROL_PATH, SHORT_DEADLINE, STOP_DEADLINE, char_path, check_control_device, failed, mark,
    stop_and_delete,
};
use super::error::UblkError;
use crate::model::VolumeId;

/// How long a server may take to end that has been killed already: the kernel answers its requests first.
const DYING_MAX: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

impl UblkControl {
    /// Stops and deletes the device `id` that an earlier run of this daemon made for `volume`. Answers whether there was
    /// one. The caller has it from its own state folder, which it has locked.
    ///
    /// # Errors
    /// [`UblkError::NotOurs`] when that number now belongs to another device, which is then left alone, and
    /// [`UblkError::ServedElsewhere`] when a living process serves it. Else what the kernel said.
    pub async fn delete_leftover(&self, id: u32, volume: VolumeId) -> Result<bool, UblkError> {
        let deadline = STOP_DEADLINE + SHORT_DEADLINE;
        self.call("DEL_DEV (leftover)", deadline, move || {
            if !char_path(id).exists() {
                return Ok(false);
            }
            check_control_device(Path::new(CONTROL_PATH))?;
            delete_leftover(id, volume)
        })
        .await
    }
}

fn delete_leftover(id: u32, volume: VolumeId) -> Result<bool, UblkError> {
    let made_note = quiet_libublk(id);
    let number = i32::try_from(id).map_err(|_| UblkError::NotOurs { id })?;
    let result = inspect(number, volume);
    if let (Err(_), Some(note)) = (&result, made_note) {
        // Ours, empty, and nobody else's business.
        drop(std::fs::remove_file(note));
    }
    let ctrl = result?;
    stop_and_delete(&ctrl)?;
    Ok(true)
}

/// Finds out whether the device is the one that was made for this volume, and that nobody serves it. A server that is
/// being killed gets a moment to end.
fn inspect(number: i32, volume: VolumeId) -> Result<UblkCtrl, UblkError> {
    let ctrl = UblkCtrl::new_simple(number).map_err(|error| failed("GET_DEV_INFO", error))?;
    let info = ctrl.dev_info();
    decide(info.dev_id, info.ublksrv_flags, volume, None)?;
    let is_dead = u32::from(info.state) == sys::UBLK_S_DEV_DEAD;
    let server = (!is_dead && !ends(info.ublksrv_pid, DYING_MAX)).then_some(info.ublksrv_pid);
    decide(info.dev_id, info.ublksrv_flags, volume, server)?;
    Ok(ctrl)
}

/// Whether a device may be deleted as a leftover: it carries the volume's mark, and no living process serves it.
fn decide(id: u32, found: u64, volume: VolumeId, server: Option<i32>) -> Result<(), UblkError> {
    if found != mark(volume) {
        return Err(UblkError::NotOurs { id });
    }
    match server {
        Some(pid) => Err(UblkError::ServedElsewhere { id, pid }),
        None => Ok(()),
    }
}

/// Whether the process is gone, or ends within `limit`. This process does not count as one.
fn ends(pid: i32, limit: Timespec) -> bool {
    let this = rustix::process::getpid();
    let Some(pid) = Pid::from_raw(pid.max(0)).filter(|pid| *pid != this) else {
        return true;
    };
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Err(error) => error == rustix::io::Errno::SRCH,
        Ok(process) => {
            // Readable once the process has ended, also when nobody has asked for its exit status yet.
            let mut waits = [PollFd::new(&process, PollFlags::IN)];
            rustix::event::poll(&mut waits, Some(&limit)).is_ok_and(|ended| ended > 0)
        }
    }
}

/// libublk complains on standard error about devices without a note of its own in `/run/ublksrvd`, which volund's
/// devices don't have. An empty note silences it; deleting the device removes it again. Answers the note if it made one.
fn quiet_libublk(id: u32) -> Option<PathBuf> {
    let folder = PathBuf::from(UblkCtrl::run_dir());
    let note = folder.join(format!("{id:04}.json"));
    drop(DirBuilder::new().mode(0o700).create(&folder));
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&note)
        .ok()?;
    io::Write::write_all(&mut file, b"{}").ok()?;
    Some(note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_volumes_own_unserved_device_is_a_leftover() {
        let (volume, other) = (VolumeId::generate(), VolumeId::generate());
        assert!(decide(3, mark(volume), volume, None).is_ok());
        let check = |found, server, reason: &str| {
            let error = decide(3, found, volume, server).unwrap_err();
            assert_eq!(error.reason(), "UblkDeviceForeign");
            assert!(error.to_string().contains(reason), "{error}");
        };
        check(mark(other), None, "not the device");
        check(0, None, "not the device");
        check(mark(volume), Some(77), "process 77");
    }

    #[test]
    fn dead_and_dying_processes_and_this_one_do_not_serve() {
        let no_time = Timespec::default();
        assert!(!ends(1, no_time));
        assert!(ends(-1, no_time));
        assert!(ends(0, no_time));
        assert!(ends(i32::try_from(std::process::id()).unwrap(), no_time));
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(!ends(pid, no_time));
        child.kill().unwrap();
        assert!(ends(pid, DYING_MAX), "a zombie has ended");
        child.wait().unwrap();
        assert!(ends(pid, no_time));
    }
}
