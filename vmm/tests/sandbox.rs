// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The sandbox refuses what it should, and allows what threads need. Each case is this program again, as a child that
//! confines itself and then tries one thing.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, Output};

use gz::sandbox::{self, Confinement, Files, Role};
use gz::signals;

const CASE: &str = "GZ_SANDBOX_CASE";
const FOLDER: &str = "GZ_SANDBOX_FOLDER";

fn folder() -> PathBuf {
    std::env::var_os(FOLDER).map(PathBuf::from).unwrap()
}

/// Not a test of its own: what children do.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    let folder = folder();
    let _signals = signals::install().unwrap();
    let mut files = Files::default();
    files.read(folder.join("read"));
    files.write(folder.join("write"));
    files.remove(&folder.join("gone/socket"));
    let open = File::options().write(true).open(folder.join("write")).unwrap();
    sandbox::enter(&files).unwrap();
    let (role, case) = case.split_once(' ').unwrap();
    let role = match role {
        "vcpu" => Role::Vcpu,
        "device" => Role::Device,
        "control" => Role::Control,
        "helper" => Role::Helper,
        _ => Role::Main,
    };
    let case = case.to_owned();
    let done = std::thread::spawn(move || {
        sandbox::narrow(role);
        // A thread of a thread, as devices' are.
        std::thread::spawn(move || attempt(&case, &open)).join().unwrap()
    });
    match done.join().unwrap() {
        Ok(()) => println!("DONE"),
        Err(error) => println!("REFUSED {error}"),
    }
}

fn attempt(case: &str, open: &File) -> std::io::Result<()> {
    let folder = folder();
    match case {
        "read" => fs::read(folder.join("read")).map(drop),
        "write" => fs::write(folder.join("write"), "new"),
        "remove" => fs::remove_file(folder.join("gone/socket")),
        "write-read-only" => fs::write(folder.join("read"), "new"),
        "read-other" => fs::read(folder.join("other")).map(drop),
        "swapped" => {
            // The name of a file that may be read leads elsewhere now.
            fs::read(folder.join("link")).map(drop)
        }
        "make" => File::create(folder.join("gone/new")).map(drop),
        "remove-other" => fs::remove_file(folder.join("other")),
        "confined" => match sandbox::confinement() {
            Confinement::Full => Ok(()),
            other => Err(std::io::Error::other(other.to_string())),
        },
        "memory" => {
            let many: Vec<_> = (0..64).map(|n| vec![n; 1 << 20]).collect();
            std::thread::sleep(std::time::Duration::from_millis(1));
            assert_eq!(many[63][5], 63);
            Ok(())
        }
        "kill-other" => {
            // SAFETY: signal 0 does nothing.
            unsafe { libc::syscall(libc::SYS_tgkill, 1, 1, 0) };
            Ok(())
        }
        "executable" => {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a new mapping, which is not used.
            unsafe {
                libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_EXEC, flags, -1, 0)
            };
            Ok(())
        }
        // What a qcow2 image's file needs: while the guest writes, and when it is opened again.
        "grow" => open.set_len(1 << 20),
        "file-system" => {
            // SAFETY: zeros are a valid statfs.
            let mut about: libc::statfs = unsafe { std::mem::zeroed() };
            // SAFETY: the file is open, and `about` outlives the call.
            match unsafe { libc::fstatfs(open.as_raw_fd(), &raw mut about) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        }
        "exec" => Err(Command::new("/bin/true").exec()),
        "tcp" => TcpListener::bind("127.0.0.1:0").map(drop),
        "unix" => UnixStream::connect("/none").map(drop),
        "trace" => {
            // SAFETY: PTRACE_TRACEME takes no pointers.
            unsafe { libc::ptrace(libc::PTRACE_TRACEME) };
            Ok(())
        }
        other => panic!("no case {other}"),
    }
}

struct Home(PathBuf);

impl Home {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gz-sandbox-{}-{name}", std::process::id()));
        fs::create_dir_all(path.join("gone")).unwrap();
        for file in ["read", "write", "other", "gone/socket"] {
            fs::write(path.join(file), "old").unwrap();
        }
        std::os::unix::fs::symlink(path.join("other"), path.join("link")).unwrap();
        Self(path)
    }

    fn child(&self, case: &str) -> Output {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CASE, case)
            .env(FOLDER, &self.0)
            .output()
            .unwrap()
    }

    fn does(&self, case: &str) {
        let output = self.child(case);
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("DONE"), "{case}: {:?} {text}", output.status.signal());
    }

    /// The call ends the process, with its number.
    fn ends(&self, case: &str) {
        let output = self.child(case);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(1) && text.contains("gz: sandbox: system call"),
            "{case}: {text}"
        );
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn threads_have_what_they_need() {
    let home = Home::new("needs");
    for case in ["main read", "main write", "main remove", "main memory", "main file-system", "device grow"] {
        home.does(case);
    }
    let text = String::from_utf8_lossy(&home.child("main unix").stdout).into_owned();
    assert!(text.contains("REFUSED No such file"), "{text}");
    for role in ["vcpu", "device", "control", "helper"] {
        home.does(&format!("{role} memory"));
    }
}

#[test]
fn other_calls_end_the_process() {
    let home = Home::new("calls");
    for call in ["exec", "tcp", "trace", "executable", "kill-other"] {
        home.ends(&format!("main {call}"));
    }
    for role in ["vcpu", "device", "control", "helper"] {
        for call in ["read", "remove", "exec", "unix", "file-system"] {
            home.ends(&format!("{role} {call}"));
        }
    }
    for role in ["control", "helper"] {
        home.ends(&format!("{role} grow"));
    }
}

#[test]
fn other_files_are_refused() {
    let home = Home::new("files");
    if !String::from_utf8_lossy(&home.child("main confined").stdout).contains("DONE") {
        println!("this kernel has no Landlock: not tried");
        return;
    }
    for case in ["read-other", "swapped", "write-read-only", "make", "remove-other"] {
        let text = String::from_utf8_lossy(&home.child(&format!("main {case}")).stdout).into_owned();
        assert!(text.contains("REFUSED Permission denied"), "{case}: {text}");
    }
    assert_eq!(fs::read_to_string(home.0.join("read")).unwrap(), "old");
}
