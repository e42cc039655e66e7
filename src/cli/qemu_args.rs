//! `volund qemu-args`: how to attach a volume to a virtual machine.

use super::args::{Global, QemuArgs, QemuVersion};
use super::client::Client;
use super::{CliError, Outcome};
use crate::model::status::{NodeStatus, VolumeStatus};

/// First version with `reconnect-ms`, which replaced `reconnect`.
const RECONNECT_MS: QemuVersion = QemuVersion(9, 2);

pub(super) fn run(global: &Global, args: &QemuArgs) -> Result<Outcome, CliError> {
    let client = Client::new(&global.admin_socket())?;
    let status: NodeStatus = client.get("/v1/status")?;
    let volume = status
        .volumes
        .iter()
        .find(|volume| volume.name == args.volume);
    let Some(volume) = volume else {
        return Err(CliError::Failed(format!(
            "there is no volume \"{}\"",
            args.volume
        )));
    };
    let export = Export::of(volume)?;
    Ok(Outcome::ok(if args.libvirt {
        export.libvirt()
    } else {
        export.qemu(args)
    }))
}

/// What a virtual machine has to know.
struct Export<'a> {
    name: &'a str,
    socket: &'a str,
    queues: u16,
}

impl<'a> Export<'a> {
    fn of(volume: &'a VolumeStatus) -> Result<Self, CliError> {
        match (&volume.export_socket, volume.export_queues) {
            (Some(socket), Some(queues)) => Ok(Self {
                name: volume.name.as_str(),
                socket,
                queues,
            }),
            _ => Err(CliError::Failed(format!(
                "volume \"{}\" has no vhost-user export: say `export = {{ vhost-user = {{}} }}` in its table",
                volume.name
            ))),
        }
    }

    /// Shared memory is a must: the daemon reads and writes the guest's memory itself.
    fn qemu(&self, args: &QemuArgs) -> String {
        let Self { name, queues, .. } = self;
        let reconnect = if args.qemu_version >= RECONNECT_MS {
            "reconnect-ms=1000"
        } else {
            "reconnect=1"
        };
        // QEMU splits options at commas; a doubled one stands for itself.
        let socket = self.socket.replace(',', ",,");
        let memory = &args.memory;
        format!(
            "-m {memory} -object memory-backend-memfd,id=mem0,size={memory},share=on -machine memory-backend=mem0 \\\n\
             -chardev socket,id=blk-{name},path={socket},{reconnect} \\\n\
             -device vhost-user-blk-pci,chardev=blk-{name},num-queues={queues}\n"
        )
    }

    fn libvirt(&self) -> String {
        let Self { name, queues, .. } = self;
        let socket = escape(self.socket);
        format!(
            "<!-- volume {name}: into <domain>, because the daemon reads and writes the guest's memory itself -->\n\
             <memoryBacking>\n  <source type='memfd'/>\n  <access mode='shared'/>\n</memoryBacking>\n\
             <!-- volume {name}: into <devices> -->\n\
             <disk type='vhostuser' device='disk'>\n  <driver name='qemu' type='raw' queues='{queues}'/>\n  \
             <source type='unix' path='{socket}'>\n    <reconnect enabled='yes' timeout='1'/>\n  </source>\n  \
             <target dev='vdb' bus='virtio'/>\n</disk>\n"
        )
    }
}

/// Text as an XML attribute.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;
    use std::process::{Command, Stdio};

    use super::*;

    fn args(version: QemuVersion) -> QemuArgs {
        QemuArgs {
            volume: "db".parse().unwrap(),
            libvirt: false,
            qemu_version: version,
            memory: "64M".to_owned(),
        }
    }

    fn export(socket: &str) -> Export<'_> {
        Export {
            name: "db",
            socket,
            queues: 4,
        }
    }

    #[test]
    fn old_and_new_qemu_spell_reconnect_differently() {
        let text = export("/run/a,b.sock").qemu(&args(QemuVersion(7, 2)));
        assert!(text.contains("path=/run/a,,b.sock,reconnect=1 "), "{text}");
        let text = export("/run/db.sock").qemu(&args("10.0".parse().unwrap()));
        assert!(text.contains(",reconnect-ms=1000 "), "{text}");
    }

    #[test]
    fn qemu_takes_the_arguments_and_speaks_vhost_user() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("db.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let text = export(socket.to_str().unwrap()).qemu(&args(QemuVersion(7, 2)));
        let words = text.replace("\\\n", " ");
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-display", "none", "-nodefaults", "-S"]);
        let command = command.args(words.split_whitespace());
        let Ok(mut qemu) = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn() else {
            eprintln!("SKIPPED: qemu-system-x86_64 is not installed");
            return;
        };
        // QEMU says why it ends, so wait for the first of both: a client, or the end of its error output.
        let mut said = qemu.stderr.take().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let failed = sender.clone();
        std::thread::spawn(move || {
            let mut text = String::new();
            said.read_to_string(&mut text).unwrap();
            // The test may be over.
            let _ = failed.send(Err(text));
        });
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut header = [0; 12];
            client.read_exact(&mut header).unwrap();
            // Kept until the test is over, so that QEMU does not end first.
            let _ = sender.send(Ok((header, client)));
        });
        let first = receiver.recv().unwrap();
        qemu.kill().unwrap();
        qemu.wait().unwrap();
        let (header, _client) = first.unwrap_or_else(|said| panic!("QEMU ended: {said}\n{text}"));
        // vhost-user: the first message is VHOST_USER_GET_FEATURES (1).
        assert_eq!(header[..4], [1, 0, 0, 0]);
    }

    #[test]
    fn libvirt_takes_the_xml() {
        if Command::new("xmllint").arg("--version").output().is_err() {
            eprintln!("SKIPPED: xmllint is not installed (Debian package libxml2-utils)");
            return;
        }
        let xml = export("/run/volund/it's.sock").libvirt();
        let (memory, disk) = xml.split_at(xml.find("<!-- volume db: into <devices>").unwrap());
        let domain = format!(
            "<domain type='kvm'><name>x</name><memory unit='MiB'>64</memory>{memory}<os><type \
             arch='x86_64'>hvm</type></os><devices>{disk}</devices></domain>"
        );
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("domain.xml");
        std::fs::write(&file, &domain).unwrap();
        let validate = Command::new("virt-xml-validate")
            .arg(&file)
            .arg("domain")
            .output();
        let Ok(output) = validate else {
            eprintln!(
                "SKIPPED: virt-xml-validate is not installed (Debian package libvirt-clients)"
            );
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{domain}");
    }
}
