//! The CRC-32 of FINGERPRINT (RFC 8489 §14.7): ITU V.42, reflected, XORed with a constant.

const FINGERPRINT_XOR: u32 = 0x5354_554E;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0xEDB8_8320
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

/// The value of FINGERPRINT for a message of which `before` are the bytes up to that attribute.
pub(super) fn fingerprint(before: &[u8]) -> u32 {
    let crc = before.iter().fold(u32::MAX, |crc, byte| {
        TABLE[usize::from((crc as u8) ^ byte)] ^ (crc >> 8)
    });
    !crc ^ FINGERPRINT_XOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_check_value_of_the_polynomial() {
        assert_eq!(fingerprint(b"123456789") ^ FINGERPRINT_XOR, 0xCBF4_3926);
    }
}
