// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The escape key, as QEMU has it:
//!
//! | keys | `gz run` | `gz console` |
//! |---|---|---|
//! | Ctrl-A x | ends the VM | leaves the console |
//! | Ctrl-A Ctrl-A, Ctrl-A a | sends one Ctrl-A | the same |
//! | Ctrl-A h | tells these keys | the same |

const ESCAPE: u8 = 1;

/// What the keys typed so far ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Ctrl-A x.
    Quit,
    /// Ctrl-A h.
    Help,
}

/// Finds the escape sequences in what is typed.
#[derive(Default)]
pub struct Escape {
    /// The last key was the escape key.
    pending: bool,
}

impl Escape {
    /// Takes one key; what the guest shall get goes to `output`.
    pub fn key(&mut self, key: u8, output: &mut Vec<u8>) -> Option<Command> {
        if !std::mem::take(&mut self.pending) {
            if key == ESCAPE {
                self.pending = true;
            } else {
                output.push(key);
            }
            return None;
        }
        match key {
            b'x' | b'X' => return Some(Command::Quit),
            b'h' | b'H' | b'?' => return Some(Command::Help),
            ESCAPE | b'a' => output.push(ESCAPE),
            // As QEMU: an unknown sequence is swallowed.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn type_keys(keys: &[u8]) -> (Vec<u8>, Vec<Command>) {
        let (mut escape, mut output) = (Escape::default(), Vec::new());
        let commands = keys.iter().filter_map(|&key| escape.key(key, &mut output)).collect();
        (output, commands)
    }

    #[test]
    fn escape_sequences() {
        assert_eq!(type_keys(b"ls\r"), (b"ls\r".to_vec(), vec![]));
        assert_eq!(type_keys(b"a\x01xb"), (b"ab".to_vec(), vec![Command::Quit]));
        assert_eq!(type_keys(b"\x01\x01x"), (b"\x01x".to_vec(), vec![]));
        assert_eq!(type_keys(b"\x01a\x01h"), (b"\x01".to_vec(), vec![Command::Help]));
        assert_eq!(type_keys(b"\x01qz\x01"), (b"z".to_vec(), vec![]));
    }
}
