//! Short hashes for object names.

use serde::Serialize;

/// The letters Kubernetes uses in generated names: no vowels and no digits that look like them, so
/// that no words come out.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// FNV-1a over the JSON form of `value` and a counter that tells apart values whose hashes collide.
/// Written with the alphabet of generated names, at most ten characters.
///
/// Nothing depends on the hash being the same as another implementation's: whoever looks for an object
/// with such a name compares contents.
pub(crate) fn short_hash<T: Serialize>(value: &T, collisions: i32) -> Result<String, serde_json::Error> {
    let json = serde_json::to_vec(value)?;
    let counter = if collisions == 0 { Vec::new() } else { collisions.to_le_bytes().to_vec() };
    Ok(encode(fnv1a(json.iter().chain(&counter))))
}

fn fnv1a<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn encode(hash: u32) -> String {
    let letter = |digit: u8| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()]);
    hash.to_string().bytes().map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_known_answers() {
        for (text, expected) in [("", 0x811c_9dc5), ("a", 0xe40c_292c), ("foobar", 0xbf9c_f968)] {
            assert_eq!(fnv1a(text.as_bytes().iter()), expected, "{text}");
        }
    }

    #[test]
    fn hashes_are_safe_in_names_and_collisions_move_them() {
        let first = short_hash(&"template", 0).unwrap();
        assert!(first.len() <= 10 && first.bytes().all(|byte| ALPHABET.contains(&byte)), "{first}");
        assert_eq!(first, short_hash(&"template", 0).unwrap());
        assert_ne!(first, short_hash(&"template", 1).unwrap());
    }
}
