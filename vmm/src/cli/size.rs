// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sizes of memory.

use std::str::FromStr;

/// A size of memory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemSize(pub u64);

impl FromStr for MemSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let (number, unit) = text.split_at(digits.len());
        let shift = match unit {
            "K" | "k" => 10,
            "" | "M" | "m" => 20,
            "G" | "g" => 30,
            "T" | "t" => 40,
            _ => return Err(format!("unknown unit {unit:?}: use K, M, G or T, as in 512M")),
        };
        let number: u64 = number.parse().map_err(|_| "not a number; write it as 512M or 2G".to_owned())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| "too large".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let size = |text: &str| text.parse::<MemSize>().map(|size| size.0);
        assert_eq!(size("512"), Ok(512 << 20));
        assert_eq!(size("8192K"), Ok(8 << 20));
        assert_eq!(size("1T"), Ok(1 << 40));
        assert!(
            size("99999999999999G").is_err()
                && size("").is_err()
                && size("M").is_err()
                && size("-1").is_err()
        );
    }
}
