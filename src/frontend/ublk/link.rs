//! Stable names: `/dev/volund/<volume>`, symbolic links to the `/dev/ublkbN` of the moment.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::error::UblkError;
use crate::model::VolumeName;

/// What a link that is being made ends with; no volume's name has a dot in it.
const UNFINISHED: &str = ".new";

const FOLDER_MODE: u32 = 0o755;

/// The folder of the links.
#[derive(Clone, Debug)]
pub struct Links {
    folder: PathBuf,
}

impl Default for Links {
    fn default() -> Self {
        Self::in_folder(PathBuf::from("/dev/volund"))
    }
}

impl Links {
    /// Links in another folder than `/dev/volund`.
    #[must_use]
    pub fn in_folder(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Where the link of a volume is.
    #[must_use]
    pub fn path(&self, volume: &VolumeName) -> PathBuf {
        self.folder.join(volume.as_str())
    }

    /// Points the volume's link at `device`, in one step: who opens it gets the old device or the new one.
    ///
    /// # Errors
    /// When something else than a link is there, or the folder can't be written.
    pub fn publish(&self, volume: &VolumeName, device: &Path) -> Result<PathBuf, UblkError> {
        let link = self.path(volume);
        let failed = |step, path: &Path| {
            let path = path.to_path_buf();
            move |source| UblkError::Link { path, step, source }
        };
        self.make_folder().map_err(failed("made", &self.folder))?;
        match fs::symlink_metadata(&link) {
            Ok(found) if !found.is_symlink() => return Err(UblkError::LinkBlocked { path: link }),
            _ => {}
        }
        let unfinished = self.folder.join(format!("{volume}{UNFINISHED}"));
        remove(&unfinished).map_err(failed("replaced", &unfinished))?;
        symlink(device, &unfinished).map_err(failed("made", &unfinished))?;
        fs::rename(&unfinished, &link).map_err(failed("made", &link))?;
        Ok(link)
    }

    /// Makes the folder if it is missing: links are for everyone, whatever the umask.
    fn make_folder(&self) -> io::Result<()> {
        if self.folder.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(&self.folder)?;
        fs::set_permissions(&self.folder, fs::Permissions::from_mode(FOLDER_MODE))
    }

    /// Removes the volume's link if it still points at `device`.
    ///
    /// # Errors
    /// When the folder can't be written.
    pub fn withdraw(&self, volume: &VolumeName, device: &Path) -> Result<(), UblkError> {
        let path = self.path(volume);
        if fs::read_link(&path).is_ok_and(|target| target == device) {
            let step = "removed";
            remove(&path).map_err(|source| UblkError::Link { path, step, source })?;
        }
        Ok(())
    }

    /// Removes what earlier runs left behind: links to ublk devices that are gone, and unfinished links. All else stays.
    ///
    /// # Errors
    /// When the folder can't be read or written.
    pub fn clean(&self) -> Result<(), UblkError> {
        let failed = |step, path: &Path| {
            let path = path.to_path_buf();
            move |source| UblkError::Link { path, step, source }
        };
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(failed("read", &self.folder))?,
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if is_stale(&path) {
                remove(&path).map_err(failed("removed", &path))?;
            }
        }
        Ok(())
    }
}

/// Whether this is a link to a ublk device, and dangles or was never finished.
fn is_stale(path: &Path) -> bool {
    let Ok(target) = fs::read_link(path) else {
        return false;
    };
    let unfinished = path.to_str().is_some_and(|path| path.ends_with(UNFINISHED));
    is_block_device_name(&target) && (unfinished || !path.exists())
}

fn is_block_device_name(target: &Path) -> bool {
    let name = target.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.strip_prefix("ublkb"))
        .is_some_and(|number| number.parse::<u32>().is_ok())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> VolumeName {
        text.parse().unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_link_is_made_replaced_and_removed_with_its_device() {
        let root = tempfile::tempdir().unwrap();
        let links = Links::in_folder(root.path().join("volund"));
        let (old, new) = (Path::new("/dev/ublkb7000"), Path::new("/dev/ublkb7001"));
        let path = links.publish(&name("db"), old).unwrap();
        assert_eq!(path, root.path().join("volund/db"));
        assert_eq!(links.publish(&name("db"), new).unwrap(), path);
        assert_eq!(fs::read_link(&path).unwrap(), new);
        assert_eq!(names(&root.path().join("volund")), ["db"]);
        links.withdraw(&name("db"), old).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), new);
        links.withdraw(&name("db"), new).unwrap();
        links.withdraw(&name("db"), new).unwrap();
        assert!(names(&root.path().join("volund")).is_empty());
    }

    #[test]
    fn what_is_not_a_link_is_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let links = Links::in_folder(root.path().into());
        fs::write(root.path().join("db"), "precious").unwrap();
        let error = links.publish(&name("db"), Path::new("/dev/ublkb7000"));
        assert!(matches!(error, Err(UblkError::LinkBlocked { .. })));
        links.clean().unwrap();
        assert_eq!(fs::read(root.path().join("db")).unwrap(), b"precious");
    }

    #[test]
    fn cleaning_removes_only_links_to_ublk_devices_that_are_gone() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("volund");
        let links = Links::in_folder(folder.clone());
        links.clean().unwrap();
        let living = root.path().join("ublkb1");
        fs::write(&living, "").unwrap();
        links.publish(&name("living"), &living).unwrap();
        links
            .publish(&name("gone"), &root.path().join("ublkb2"))
            .unwrap();
        symlink("/nowhere/else", folder.join("foreign")).unwrap();
        symlink(&living, folder.join("half.new")).unwrap();
        links.clean().unwrap();
        assert_eq!(names(&folder), ["foreign", "living"]);
    }
}
