// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Random numbers for guests: from the CPU where it has some (FEAT_RNG), else from the firmware's own interface.

use core::sync::atomic::{AtomicBool, Ordering};

use gzvm_core::platform::entropy::Failure;
use gzvm_core::platform::trng::{self, Answer};

use super::outcome::Next;
use super::run::Running;
use crate::arch::percpu::PerCpu;
use crate::arch::{rng, smc};
use crate::platform;

/// It has been said that a source failed.
static TOLD: AtomicBool = AtomicBool::new(false);

impl Running<'_> {
    /// A call of the TRNG firmware interface.
    #[cold]
    pub fn trng(&mut self, fid: u32, arg: u64) -> Next {
        let x = &mut self.vcpu.regs.x;
        match trng::decide(fid, arg, available()) {
            Answer::One(value) => x[0] = value,
            Answer::Four(values) => x[..4].copy_from_slice(&values),
            Answer::Random(request) => match draw() {
                Ok(random) => x[..4].copy_from_slice(&trng::bits(request, random)),
                Err(failure) => {
                    if failure == Failure::Unhealthy && !TOLD.swap(true, Ordering::Relaxed) {
                        log::warn!("the source of random numbers has failed its tests");
                    }
                    // Nothing of what was there before stays where bits are expected.
                    x[..4].copy_from_slice(&[trng::NO_ENTROPY, 0, 0, 0]);
                }
            },
        }
        Next::Resume
    }
}

/// Whether there is any source.
pub fn available() -> bool {
    PerCpu::this().with(|s| s.features.rng) || platform::get().firmware_trng
}

/// 192 bits of the source that is [`available`].
///
/// # Errors
/// It has none at the moment, or is not to be trusted.
pub fn draw() -> Result<[u64; 3], Failure> {
    let cpu = PerCpu::this().with(|s| s.features.rng);
    let mut firmware = Firmware::default();
    PerCpu::this().with(|s| s.random.draw(|| if cpu { rng::word() } else { firmware.word() }))
}

/// Words of the firmware, which gives three a call.
#[derive(Default)]
struct Firmware {
    words: [u64; 3],
    left: usize,
}

impl Firmware {
    fn word(&mut self) -> Option<u64> {
        if self.left == 0 {
            let [status, words @ ..] = smc::call([u64::from(trng::RND64), 192, 0, 0, 0, 0, 0, 0]);
            if status != 0 {
                return None;
            }
            self.words = words;
            self.left = words.len();
        }
        self.left -= 1;
        self.words.get(self.left).copied()
    }
}

/// Whether the firmware has the interface; asked once, at boot, of firmware that answers SMCs.
pub fn firmware_has_it() -> bool {
    const PSCI_FEATURES: u64 = 0x8400_000A;
    let ask = |function: u64, argument: u64| smc::call([function, argument, 0, 0, 0, 0, 0, 0])[0] as i32;
    let smccc = u64::from(gzvm_core::platform::smccc::VERSION);
    ask(PSCI_FEATURES, smccc) >= 0
        && ask(smccc, 0) >= 0x1_0001
        && ask(trng::VERSION.into(), 0) >= trng::VERSION_1_0 as i32
        && ask(trng::FEATURES.into(), trng::RND64.into()) >= 0
}
