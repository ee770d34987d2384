// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A running machine's serial console: wait for text with a deadline, type, see how the machine ends.
//!
//! Invariants: a [`Console`] that goes away takes its machine with it; every byte read is in the log file before any
//! wait returns; each wait looks only at what came after the previous one's match; a line of EL2's or QEMU's that came in the
//! middle of another line is put before it.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ExitStatus},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

/// Text that means that waiting longer is useless.
const FATAL: [&str; 3] = ["Kernel panic - not syncing", "*** gzvm: ", "Unable to mount root fs"];

/// Output and errors: what QEMU complains about is part of the console.
const STREAMS: u32 = 2;
/// Limits are said for a PC that does nothing else; a busy one gets so many times that.
const BUSY: u32 = 2;

/// How EL2's and QEMU's lines begin. They write whole lines, but not always at the beginning of one: the UART has several
/// writers, and QEMU's errors are another stream.
const WHOLE_LINES: [&str; 2] = ["gzvm [", "qemu-system-aarch64: "];

#[derive(Debug, Default)]
struct Received {
    text: String,
    /// Where the next wait begins.
    cursor: usize,
    /// Where the first line begins that is not complete.
    line: usize,
    /// How many of the streams have ended.
    ended: u32,
}

impl Received {
    fn add(&mut self, bytes: &[u8]) {
        self.text.extend(String::from_utf8_lossy(bytes).chars().filter(|c| *c != '\r'));
        while let Some(length) = self.text[self.line..].find('\n') {
            let end = self.line + length + 1;
            let line = &self.text[self.line..end];
            match WHOLE_LINES.iter().filter_map(|begin| line.find(begin)).min().map(|at| self.line + at) {
                Some(begin) if begin > self.line && begin >= self.cursor => {
                    let inserted: String = self.text.drain(begin..end).collect();
                    let at = self.line.max(self.cursor);
                    self.text.insert_str(at, &inserted);
                    self.line = at + inserted.len();
                }
                _ => self.line = end,
            }
        }
    }
}

type Shared = Arc<(Mutex<Received>, Condvar)>;

/// The console of a machine under test.
#[derive(Debug)]
pub struct Console {
    child: Child,
    input: Option<ChildStdin>,
    shared: Shared,
    readers: Vec<JoinHandle<()>>,
    log: PathBuf,
    fatal: Vec<&'static str>,
}

impl Console {
    /// Takes over a QEMU whose three streams are pipes.
    ///
    /// # Errors
    /// If the log can't be written.
    pub fn new(mut child: Child, log: &Path) -> Result<Self> {
        if let Some(folder) = log.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = File::create(log).with_context(|| format!("can't write {}", log.display()))?;
        let shared = Shared::default();
        let output = child.stdout.take().context("QEMU's output is a pipe")?;
        let errors = child.stderr.take().context("QEMU's error stream is a pipe")?;
        let readers = vec![
            spawn_reader(output, file.try_clone()?, shared.clone()),
            spawn_reader(errors, file, shared.clone()),
        ];
        let input = child.stdin.take();
        Ok(Self { child, input, shared, readers, log: log.to_path_buf(), fatal: FATAL.to_vec() })
    }

    /// For tests that provoke a guest's panic: only the end of the machine ends a wait early.
    pub fn expect_panics(&mut self) {
        self.fatal.clear();
    }

    /// Waits until `pattern` appears, and returns what came before it.
    ///
    /// # Errors
    /// When `limit` has passed, the machine ended, or a kernel panicked; with the last lines of the console.
    pub fn wait_for(&mut self, pattern: &str, limit: Duration) -> Result<String> {
        self.wait_for_any(&[pattern], limit).map(|(_, before)| before)
    }

    /// Waits until one of `patterns` appears; returns which one, and what came before it.
    ///
    /// # Errors
    /// As [`Console::wait_for`].
    pub fn wait_for_any(&mut self, patterns: &[&str], limit: Duration) -> Result<(usize, String)> {
        let limit = limit * BUSY;
        let deadline = Instant::now() + limit;
        let (mutex, condition) = &*self.shared.clone();
        let mut received = lock(mutex);
        loop {
            let rest = &received.text[received.cursor..];
            let first = patterns
                .iter()
                .enumerate()
                .filter_map(|(index, pattern)| rest.find(pattern).map(|at| (at, index)))
                .min();
            if let Some((at, index)) = first {
                let before = rest[..at].to_owned();
                received.cursor += at + patterns[index].len();
                return Ok((index, before));
            }
            let problem = if let Some(fatal) = self.fatal.iter().find(|fatal| rest.contains(**fatal)) {
                Some(format!("the console says \"{fatal}\""))
            } else if received.ended == STREAMS {
                Some("the machine ended".to_owned())
            } else {
                None
            };
            let now = Instant::now();
            if let Some(problem) = problem
                .or_else(|| (now >= deadline).then(|| format!("{:.0} s have passed", limit.as_secs_f64())))
            {
                let tail = tail(&received.text, 30);
                drop(received);
                bail!(
                    "waited for {patterns:?}, but {problem}\n--- end of the console ({}) ---\n{tail}\n---",
                    self.log.display()
                );
            }
            let wait = deadline.saturating_duration_since(now);
            received = condition.wait_timeout(received, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Types `text` and the Enter key.
    ///
    /// # Errors
    /// If the machine ended.
    pub fn type_line(&mut self, text: &str) -> Result<()> {
        self.send(format!("{text}\n").as_bytes())
    }

    /// Sends bytes to the console as they are.
    ///
    /// # Errors
    /// If the machine ended.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let input = self.input.as_mut().ok_or_else(|| anyhow!("the console's input is closed"))?;
        input.write_all(bytes).and_then(|()| input.flush()).context("the machine takes no input any more")
    }

    /// Types a shell command and waits until it has ended; returns its output and status.
    ///
    /// The end mark is spelled so that the echo of the command does not match it.
    ///
    /// # Errors
    /// As [`Console::wait_for`].
    pub fn shell(&mut self, command: &str, limit: Duration) -> Result<(String, i32)> {
        self.type_line(&format!("{command}; echo \"[\"END=$?\"]\""))?;
        let output = self.wait_for("[END=", limit).with_context(|| format!("shell command: {command}"))?;
        let status = self.wait_for("]", limit)?;
        let status = status.trim().parse().with_context(|| format!("exit status {status:?}"))?;
        // What comes first is the echo, which ends with the mark as typed.
        let output = output.rsplit_once("\"]\"").map_or(output.as_str(), |(_, output)| output);
        Ok((output.trim().to_owned(), status))
    }

    /// Waits until the machine ends by itself.
    ///
    /// # Errors
    /// If it does not within `limit`.
    pub fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let limit = limit * BUSY;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                for reader in self.readers.drain(..) {
                    drop(reader.join());
                }
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!(
                    "the machine still runs after {:.0} s\n--- end of the console ({}) ---\n{}\n---",
                    limit.as_secs_f64(),
                    self.log.display(),
                    tail(&self.text(), 30)
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the end of the machine, which must be a power-off (QEMU's status 0).
    ///
    /// # Errors
    /// As [`Console::wait_end`], and for any other status.
    pub fn wait_power_off(&mut self, limit: Duration) -> Result<()> {
        let status = self.wait_end(limit)?;
        if !status.success() {
            bail!("the machine ended with {status}\n{}", tail(&self.text(), 30));
        }
        Ok(())
    }

    /// Everything that the console said so far, without carriage returns.
    #[must_use]
    pub fn text(&self) -> String {
        lock(&self.shared.0).text.clone()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Both fail only if the machine has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

fn lock(mutex: &Mutex<Received>) -> MutexGuard<'_, Received> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn_reader(mut from: impl Read + Send + 'static, mut log: File, shared: Shared) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        loop {
            let length = match from.read(&mut chunk) {
                Ok(0) | Err(_) => break,
                Ok(length) => length,
            };
            let bytes = &chunk[..length];
            // A full disk must not hide the console from the test itself.
            let _ = log.write_all(bytes);
            let mut received = lock(&shared.0);
            received.add(bytes);
            shared.1.notify_all();
        }
        lock(&shared.0).ended += 1;
        shared.1.notify_all();
    })
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn console(script: &str, name: &str) -> Console {
        let child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = std::env::temp_dir().join(format!("gzvm-console-{}-{name}.log", std::process::id()));
        Console::new(child, &log).unwrap()
    }

    fn cleanup(console: Console) {
        let log = console.log.clone();
        drop(console);
        fs::remove_file(log).unwrap();
    }

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn waits_are_in_order_and_see_the_end() {
        let mut console = console("printf 'one\\r\\ntwo\\n'; read x; echo got $x", "order");
        assert_eq!(console.wait_for("two", SOON).unwrap(), "one\n");
        assert!(console.wait_for("one", Duration::from_millis(50)).is_err());
        console.type_line("three").unwrap();
        console.wait_for("got three", SOON).unwrap();
        console.wait_power_off(SOON).unwrap();
        assert!(console.wait_for("more", SOON).unwrap_err().to_string().contains("the machine ended"));
        cleanup(console);
    }

    #[test]
    fn a_line_of_el2_parts_no_other() {
        let mut received = Received::default();
        received.add(b"a\n[FAIL] host::cpu_ongzvm [   0.038506] WARN");
        received.add(b"  host: denied\n_cannot\ngzvm [   1.0] INFO  b\n");
        assert_eq!(
            received.text,
            "a\ngzvm [   0.038506] WARN  host: denied\n[FAIL] host::cpu_on_cannot\ngzvm [   1.0] INFO  b\n"
        );
        // What a wait has been given already stays where it was.
        let mut received = Received::default();
        received.add(b"login: ");
        received.cursor = 7;
        received.add(b"roogzvm [ 1] INFO  x\ntgzvm [ 2] INFO  y\n!\n");
        assert_eq!(received.text, "login: gzvm [ 1] INFO  x\ngzvm [ 2] INFO  y\nroot!\n");
    }

    #[test]
    fn a_kernel_panic_ends_the_wait() {
        let mut console = console("echo Kernel panic - not syncing: oh; exec sleep 60", "panic");
        let begin = Instant::now();
        assert!(console.wait_for("never", SOON).is_err());
        assert!(begin.elapsed() < SOON);
        cleanup(console);
    }

    #[test]
    fn a_bad_status_is_no_power_off() {
        let mut console = console("exit 3", "status");
        assert!(console.wait_power_off(SOON).is_err());
        cleanup(console);
    }
}
