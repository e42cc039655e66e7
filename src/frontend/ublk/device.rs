//! Control commands on one device, through libublk. Everything here may block in the kernel, so all of it runs on the
//! control thread's executor; [`Device`] is what the rest holds.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::io::UblkDev;
use libublk::{UblkFlags, sys};

use super::DATA_LEN_MAX;
use super::control::UblkControl;
use super::error::UblkError;
use super::occupancy::Occupancy;
use super::params::params;
use crate::model::VolumeId;
use crate::volume::Geometry;

/// Where the driver takes commands.
pub(super) const CONTROL_PATH: &str = "/dev/ublk-control";
/// What volund needs of the driver. All of it is in kernels from 6.5 on.
const FEATURES: u64 = (sys::UBLK_F_USER_COPY | sys::UBLK_F_CMD_IOCTL_ENCODE) as u64;
/// How long ADD may take: it makes a device node and waits for udev to allow its use.
const ADD_DEADLINE: Duration = Duration::from_secs(10);
/// How long START may take: it reads the partition table, so it needs the volume's answer.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long STOP may take: it writes back what the host's page cache holds, and waits for what is in flight.
pub(super) const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// How long a command may take that only looks something up, or only asks for a deletion.
pub(super) const SHORT_DEADLINE: Duration = Duration::from_secs(10);

/// What a device is made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceSpec {
    /// The number in `/dev/ublkbN`; the kernel's choice when not given.
    pub(super) id: Option<u32>,
    /// Whose data it shows.
    pub(super) volume: VolumeId,
    /// Requests in flight.
    pub(super) depth: u16,
    /// Size and block size.
    pub(super) geometry: Geometry,
}

/// A device that volund made. When it is dropped before [`Device::delete`], it is stopped and deleted in the background.
pub(super) struct Device {
    id: u32,
    ctrl: Arc<UblkCtrl>,
    control: UblkControl,
    occupancy: Arc<Occupancy>,
    deleted: AtomicBool,
}

/// An added device that has not been started: the block device does not exist yet.
#[derive(Debug)]
pub(super) struct Added {
    pub(super) device: Arc<Device>,
    /// The character device, for the queue. It can be opened once only, so this is a duplicate of libublk's.
    pub(super) queue: OwnedFd,
    pub(super) unstarted: Unstarted,
}

/// What libublk wants to see again at START.
pub(super) struct Unstarted(UblkDev);

/// Path of the block device.
pub(super) fn block_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

/// Path of the character device.
pub(super) fn char_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkc{id}"))
}

/// The mark that ties a device to its volume: the low half of the volume's UUID, of which 62 bits are random. The kernel
/// keeps it as `ublksrv_flags`, which it does not interpret and nobody can change afterwards.
pub(super) fn mark(volume: VolumeId) -> u64 {
    volume.uuid().as_u64_pair().1
}

impl UblkControl {
    /// Asks the driver whether it is there and offers what volund needs.
    ///
    /// # Errors
    /// [`UblkError::Unavailable`] and [`UblkError::FeatureMissing`], or that the driver did not answer.
    pub async fn probe(&self) -> Result<(), UblkError> {
        self.call("GET_FEATURES", SHORT_DEADLINE, || {
            check_control_device(Path::new(CONTROL_PATH))?;
            check_features(UblkCtrl::get_features())
        })
        .await
    }

    pub(super) async fn add(&self, spec: DeviceSpec) -> Result<Added, UblkError> {
        if let Some(id) = self.orphans().of(spec.volume) {
            return Err(UblkError::Busy { id });
        }
        self.probe().await?;
        let control = self.clone();
        self.call("ADD_DEV", ADD_DEADLINE, move || add(control, spec))
            .await
    }
}

impl Device {
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    pub(super) fn control(&self) -> &UblkControl {
        &self.control
    }

    /// Makes the block device appear. Returns once the kernel has read its partition table.
    pub(super) async fn start(&self, unstarted: Unstarted) -> Result<(), UblkError> {
        let id = self.id;
        self.command("START_DEV", START_DEADLINE, move |ctrl| {
            let started = ctrl.start_dev(&unstarted.0);
            if started.is_ok() {
                drop_scheduler(id);
            }
            started
        })
        .await
    }

    /// Enlarges the block device while it is there. Kernels before 6.16 can't.
    pub(super) async fn resize(&self, bytes: u64) -> Result<(), UblkError> {
        self.command("UPDATE_SIZE", SHORT_DEADLINE, move |ctrl| {
            ctrl.update_size(bytes)
        })
        .await
    }

    /// Makes the block device disappear. The queue has to be served until this returns.
    pub(super) async fn stop(&self) -> Result<(), UblkError> {
        self.command("STOP_DEV", STOP_DEADLINE, UblkCtrl::kill_dev)
            .await
    }

    /// Deletes a stopped device. Does not wait for those who still hold it open: their handles are dead, and the kernel
    /// frees the number with the last of them.
    pub(super) async fn delete(&self) -> Result<(), UblkError> {
        if self.deleted.load(Ordering::Acquire) {
            return Ok(());
        }
        self.command("DEL_DEV_ASYNC", SHORT_DEADLINE, UblkCtrl::del_dev_async)
            .await?;
        self.deleted.store(true, Ordering::Release);
        Ok(())
    }

    /// One command, unless an earlier one still hangs: libublk would wait for it under a lock, without a deadline.
    async fn command<F>(
        &self,
        command: &'static str,
        deadline: Duration,
        run: F,
    ) -> Result<(), UblkError>
    where
        F: FnOnce(&UblkCtrl) -> Result<i32, libublk::UblkError> + Send + 'static,
    {
        let occupancy = Arc::clone(&self.occupancy);
        if !occupancy.begin() {
            return Err(UblkError::Busy { id: self.id });
        }
        let (id, ctrl) = (self.id, Arc::clone(&self.ctrl));
        let answer = self.control.call(command, deadline, move || {
            let result = with_ring(command, || checked(command, run(&ctrl)));
            if occupancy.end() {
                clean_up(id, &ctrl);
            }
            result
        });
        answer.await
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.deleted.load(Ordering::Acquire) {
            return;
        }
        if !self.occupancy.abandon() {
            return;
        }
        let (id, ctrl) = (self.id, Arc::clone(&self.ctrl));
        let work = move || clean_up(id, &ctrl);
        self.control.later("DEL_DEV_ASYNC", STOP_DEADLINE, work);
    }
}

impl std::fmt::Debug for Unstarted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unstarted")
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("id", &self.id).finish()
    }
}

/// Whether commands can be given at all. Asked before libublk is, since that prints its complaints.
pub(super) fn check_control_device(path: &Path) -> Result<(), UblkError> {
    let found = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            format!("{:?} does not exist", path.display())
        }
        Err(error) => format!("{:?} can't be opened: {error}", path.display()),
    };
    Err(UblkError::Unavailable { found })
}

fn check_features(offered: Option<u64>) -> Result<(), UblkError> {
    let needs = "Linux 6.5 or later";
    let feature = match offered {
        None => "GET_FEATURES",
        Some(bits) if bits & FEATURES != FEATURES => "UBLK_F_USER_COPY",
        Some(_) => return Ok(()),
    };
    Err(UblkError::FeatureMissing { feature, needs })
}

fn add(control: UblkControl, spec: DeviceSpec) -> Result<Added, UblkError> {
    let command = "ADD_DEV";
    let id = match spec.id {
        None => -1,
        Some(id) if char_path(id).exists() => return Err(UblkError::IdTaken { id }),
        Some(id) => i32::try_from(id).map_err(|_| UblkError::IdTaken { id })?,
    };
    let ctrl = UblkCtrlBuilder::default()
        .name("volund")
        .id(id)
        .nr_queues(1)
        .depth(spec.depth)
        .io_buf_bytes(DATA_LEN_MAX)
        .ctrl_flags(FEATURES)
        .ctrl_target_flags(mark(spec.volume))
        .dev_flags(UblkFlags::UBLK_DEV_F_ADD_DEV | UblkFlags::UBLK_DEV_F_DEL_DEV_ASYNC)
        .build()
        .map_err(|error| match (failed(command, error), spec.id) {
            (error, Some(id)) if error.errno() == Some(libc::EEXIST) => UblkError::IdTaken { id },
            (error, _) => error,
        })?;
    // libublk's own clean-up runs on whichever thread drops it; `Device` sees to it on the right one.
    ctrl.disown();
    let id = ctrl.dev_info().dev_id;
    let occupancy = Occupancy::new(id, spec.volume, control.orphans().clone());
    let device = Arc::new(Device {
        id,
        ctrl: Arc::new(ctrl),
        control,
        occupancy: Arc::new(occupancy),
        deleted: AtomicBool::new(false),
    });
    if device.ctrl.dev_info().ublksrv_flags != mark(spec.volume) {
        // libublk takes EBUSY for success; whatever this is, it is not the device that was asked for.
        device.deleted.store(true, Ordering::Release);
        return Err(UblkError::NotOurs { id });
    }
    let set = |dev: &mut UblkDev| {
        dev.tgt.dev_size = spec.geometry.size;
        dev.tgt.params = params(spec.geometry);
        Ok(())
    };
    let dev = UblkDev::new("volund".into(), set, &device.ctrl)
        .map_err(|error| failed("ADD_DEV (open)", error))?;
    let queue = duplicate(&dev).map_err(|source| UblkError::Command { command, source })?;
    Ok(Added {
        device,
        queue,
        unstarted: Unstarted(dev),
    })
}

/// Takes the I/O scheduler from a block device: the disks below have theirs. The kernel gives a device with one queue
/// mq-deadline, which costs each request a lock, and requests that come together are not handed over together. Who wants
/// one sets it afterwards.
fn drop_scheduler(id: u32) {
    let path = format!("/sys/block/ublkb{id}/queue/scheduler");
    if let Err(error) = std::fs::write(&path, "none") {
        tracing::debug!(device = id, %error, "the device keeps its I/O scheduler");
    }
}

#[allow(
    unsafe_code,
    reason = "libublk tells its file as a number; the character device can't be opened twice"
)]
fn duplicate(dev: &UblkDev) -> io::Result<OwnedFd> {
    // SAFETY: libublk puts the character device's descriptor there and keeps it open as long as `dev` lives, which is
    // longer than this borrow.
    let file = unsafe { BorrowedFd::borrow_raw(dev.tgt.fds[0]) };
    file.try_clone_to_owned()
}

/// Deletes a device that nobody waits for.
fn clean_up(id: u32, ctrl: &UblkCtrl) {
    if let Err(error) = stop_and_delete(ctrl) {
        tracing::warn!(device = id, %error, "an unused ublk device could not be deleted");
    }
}

pub(super) fn stop_and_delete(ctrl: &UblkCtrl) -> Result<(), UblkError> {
    with_ring("STOP_DEV", || {
        checked("STOP_DEV", ctrl.kill_dev())?;
        checked("DEL_DEV_ASYNC", ctrl.del_dev_async())
    })
}

/// Runs `work` with this thread's control ring in place; libublk makes it only where it makes a `UblkCtrl`.
fn with_ring<T>(
    command: &'static str,
    work: impl FnOnce() -> Result<T, UblkError>,
) -> Result<T, UblkError> {
    libublk::ublk_init_ctrl_task_ring(|ring| {
        if ring.is_none() {
            *ring = Some(io_uring::IoUring::builder().build(16)?);
        }
        Ok(())
    })
    .map_err(|error| failed(command, error))?;
    work()
}

/// libublk reports EBUSY as a success.
fn checked(
    command: &'static str,
    result: Result<i32, libublk::UblkError>,
) -> Result<(), UblkError> {
    match result {
        Ok(code) if code >= 0 => Ok(()),
        Ok(code) => {
            let source = io::Error::from_raw_os_error(-code);
            Err(UblkError::Command { command, source })
        }
        Err(error) => Err(failed(command, error)),
    }
}

pub(super) fn failed(command: &'static str, error: libublk::UblkError) -> UblkError {
    use libublk::UblkError as Theirs;
    let source = match error {
        Theirs::UringIOError(code) | Theirs::OtherError(code) => {
            io::Error::from_raw_os_error(code.saturating_abs())
        }
        Theirs::IOError(source) => source,
        other => io::Error::other(other),
    };
    UblkError::Command { command, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_driver_is_explained_before_libublk_is_asked() {
        let error = check_control_device(Path::new("/nowhere/ublk-control")).unwrap_err();
        assert_eq!(error.reason(), "UblkUnavailable");
        let text = error.to_string();
        assert!(
            text.contains("\"/nowhere/ublk-control\" does not exist"),
            "{text}"
        );
        assert!(text.contains("modprobe ublk_drv"), "{text}");
    }

    #[test]
    fn a_driver_without_user_copy_is_refused() {
        assert!(check_features(Some(FEATURES | 1)).is_ok());
        for offered in [None, Some(0), Some(u64::from(sys::UBLK_F_CMD_IOCTL_ENCODE))] {
            assert!(matches!(
                check_features(offered),
                Err(UblkError::FeatureMissing { .. })
            ));
        }
    }

    #[test]
    fn the_mark_is_never_what_a_device_without_one_has() {
        for _ in 0..100 {
            assert_ne!(mark(VolumeId::generate()), 0);
        }
    }

    #[test]
    fn success_with_a_negative_code_is_a_failure() {
        assert!(checked("X", Ok(0)).is_ok());
        let error = checked("X", Ok(-libc::EBUSY)).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EBUSY));
        let error = checked("X", Err(libublk::UblkError::UringIOError(-libc::ENODEV)));
        assert_eq!(error.unwrap_err().errno(), Some(libc::ENODEV));
    }
}
