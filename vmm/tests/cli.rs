// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The program as a user meets it, as far as it goes without a hypervisor: exit codes, what is said where, what is left.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

struct Home(PathBuf);

impl Home {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gz-cli-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gz"));
        command
            .args(arguments)
            .current_dir(&self.0)
            .env("GZ_RUNTIME_DIR", self.0.join("run"))
            .stdin(Stdio::null());
        command
    }

    fn gz(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// It must end with this code, and say this on standard output or error.
    fn says(&self, code: i32, text: &str, arguments: &[&str]) -> String {
        let output = self.gz(arguments);
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        let said = if code == 0 { &out } else { &err };
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {out}{err}");
        assert!(said.contains(text), "{arguments:?}: {out}{err}");
        out
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn mistakes_have_exit_codes_and_leave_nothing() {
    let home = Home::new("mistakes");
    home.says(2, "Usage", &[]);
    home.says(2, "unrecognized subcommand", &["fly"]);
    home.says(2, "--kernel <FILE>", &["run"]);
    home.says(2, "a name is", &["run", "--kernel", "k", "--name", "a/b"]);
    home.says(1, "kernel none", &["run", "--kernel", "none", "--name", "a"]);
    home.says(1, "a: no VM of this name runs", &["pause", "a"]);
    home.says(1, "./a: No such file", &["pause", "./a"]);
    home.says(1, "a name is", &["pause", ".."]);
    assert_eq!(fs::read_dir(home.0.join("run")).unwrap().count(), 0);
    // The run directory is a file.
    fs::remove_dir(home.0.join("run")).unwrap();
    fs::write(home.0.join("run"), "").unwrap();
    home.says(1, "must be a folder", &["run", "--kernel", "none", "--name", "a"]);
    home.says(1, "kernel none", &["run", "--kernel", "none"]);
}

#[test]
fn json_is_a_line_of_its_own() {
    let home = Home::new("json");
    assert_eq!(home.says(0, "", &["ps", "--json"]), "[]\n");
    assert!(home.says(0, "NAME", &["ps"]).lines().count() == 1);
    for (code, text, arguments) in [
        (1, r#"{"error":"a: no VM"#, &["info", "a", "--json"][..]),
        (1, r#"{"end":"error","code":1,"message":""#, &["--json", "run", "--kernel", "none"]),
    ] {
        home.says(code, text, arguments);
    }
    fs::write(home.0.join("vm.toml"), "kernel = 'k'\ncpus = 2\n").unwrap();
    let out = home.says(0, "", &["run", "--config", "vm.toml", "--dry-run", "--json", "--mem", "1G"]);
    let resolved: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&resolved["cpus"], &resolved["mem"]), (&2.into(), &"1G".into()));
    fs::write(home.0.join("vm.toml"), "x = 1\n").unwrap();
    home.says(2, "unknown key `x`", &["run", "--config", "vm.toml"]);
}

#[test]
fn a_closed_standard_output_is_an_error_without_a_panic() {
    let home = Home::new("closed");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = home.command(&["ps"]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(1), &b""[..]));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = home.command(&["ps"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("standard output"));
}

#[test]
fn bash_takes_the_completions() {
    let home = Home::new("bash");
    let script = r#"eval "$("$0" completions bash)" && complete -p gz"#;
    let Ok(output) = Command::new("bash").args(["-c", script, env!("CARGO_BIN_EXE_gz")]).output() else {
        println!("no bash here: not tried");
        return;
    };
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    home.says(0, "", &["man", "man1"]);
    assert!(home.0.join("man1/gz-run.1").is_file());
}

/// A VM that says what it is told to, in place of a real one.
#[test]
fn answers_that_are_none_are_told() {
    let home = Home::new("answers");
    let path = home.0.join("vm");
    let listener = UnixListener::bind(&path).unwrap();
    let path = path.to_str().unwrap();
    for (answer, text) in [
        (&b""[..], "the VM has ended"),
        (b"rubbish\n", "none of this version"),
        (b"{\"version\":9,\"error\":{\"kind\":\"version\",\"message\":\"speak 9\"}}\n", "speak 9"),
        (b"{\"version\":1,\"reply\":\"accepted\"}\n", "something else"),
        (&[b'x'; 10_000], "invalid data"),
    ] {
        let command =
            home.command(&["info", path]).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut question = [0; 64];
        let count = stream.read(&mut question).unwrap();
        assert_eq!(&question[..count], b"{\"version\":1,\"request\":\"info\"}\n");
        let _ = stream.write_all(answer);
        drop(stream);
        let output = command.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && said.contains(text), "{answer:?}: {said}");
    }
}
