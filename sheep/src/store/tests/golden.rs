//! The names and bytes of what a store puts on disk.

use super::damage::filled;
use super::*;

fn content(fs: &SimFs, path: &Path) -> Vec<u8> {
    let file = as_fs(fs).open(path).expect("there");
    let mut bytes = vec![0; file.size().expect("known") as usize];
    file.read_at(&mut bytes, 0).expect("read");
    bytes
}

/// All files below `dir`.
fn names(fs: &SimFs, dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in as_fs(fs).list(dir).expect("listed") {
        let path = dir.join(&entry.name);
        if entry.is_dir {
            names.append(&mut self::names(fs, &path));
        } else {
            names.push(path.display().to_string());
        }
    }
    names.sort();
    names
}

#[test]
fn files_keep_their_names() {
    let fs = SimFs::new();
    drop(filled(&fs));
    assert_eq!(
        names(&fs, Path::new(DIR)),
        [
            "/intents.2",
            "/objects/format",
            "/objects/r3/00000/01000000000000000100000000000000.0000000001000000",
            "/requests",
            "/seals.1",
        ]
    );
    assert_eq!(content(&fs, Path::new("/objects/format")), b"sheepdog objects 1\n");
}

#[test]
fn an_object_has_these_bytes_for_ever() {
    let fs = SimFs::new();
    drop(filled(&fs));
    let file = as_fs(&fs).open(&object_path(&key(0))).expect("there");
    let mut bytes = vec![0; 8192];
    file.read_at(&mut bytes, 0).expect("read");
    // Only what is not zero: offset and 8 bytes each.
    let lines = bytes.chunks(8).enumerate().filter(|(_, chunk)| **chunk != [0; 8]);
    let dump: String = lines
        .map(|(at, chunk)| {
            let hex: String = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{:04} {hex}\n", at * 8)
        })
        .collect();
    assert_eq!(dump, include_str!("../golden/object.txt"));
    assert_eq!(file.size().expect("known"), 8192 + 3 * 4096);
}
