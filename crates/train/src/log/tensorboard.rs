//! TensorBoard event files, as far as scalars need them.
//!
//! A file is a sequence of TFRecords: length (u64), masked CRC-32C of the length, data, masked CRC-32C of
//! the data, all little-endian (`tensorflow/core/lib/io/record_writer.cc`). The data is an `Event` message
//! (`tensorflow/core/util/event.proto`) of which four fields are used here.

use std::io::{self, Write};
use std::path::Path;
use zamba_data::fs::{Fs, FsWrite};

/// An open event file.
pub(super) struct EventFile {
    file: Box<dyn FsWrite>,
}

impl EventFile {
    /// A new file in `dir` for a run that stands at step `step`. Values that earlier files have for later
    /// steps are dropped by TensorBoard.
    pub(super) fn create(fs: &dyn Fs, dir: &Path, wall_time: f64, step: u64) -> io::Result<Self> {
        fs.create_dirs(dir)?;
        // TensorBoard reads files in the order of their names.
        let mut n = 0;
        let path = loop {
            let path = dir.join(format!("events.out.tfevents.{:010}.zamba.{n}", wall_time as u64));
            if !fs.exists(&path)? {
                break path;
            }
            n += 1;
        };
        let mut file = fs.create(&path)?;
        file.write_all(&framed(&event(wall_time, 0, &bytes_field(3, b"brain.Event:2"))))?;
        // SessionLog { status: START } at a step says: forget what is at or after it.
        file.write_all(&framed(&event(wall_time, step + 1, &bytes_field(7, &varint_field(1, 1)))))?;
        Ok(EventFile { file })
    }

    /// Writes one record with the values of a step. Values that are not finite are left out.
    pub(super) fn scalars(&mut self, wall_time: f64, step: u64, values: &[(&str, f64)]) -> io::Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values.iter().filter(|(_, v)| v.is_finite()) {
            let mut entry = bytes_field(1, tag.as_bytes());
            entry.extend([2 << 3 | 5]);
            entry.extend((*value as f32).to_le_bytes());
            summary.extend(bytes_field(1, &entry));
        }
        self.file.write_all(&framed(&event(wall_time, step, &bytes_field(5, &summary))))
    }
}

/// `Event { wall_time: 1, step: 2, what: 3, 5 or 7 }`
fn event(wall_time: f64, step: u64, what: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1 << 3 | 1];
    bytes.extend(wall_time.to_le_bytes());
    if step > 0 {
        bytes.extend(varint_field(2, step));
    }
    bytes.extend(what);
    bytes
}

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn varint_field(number: u8, value: u64) -> Vec<u8> {
    let mut out = vec![number << 3];
    varint(value, &mut out);
    out
}

fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    varint(bytes.len() as u64, &mut out);
    out.extend(bytes);
    out
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc(data).to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use zamba_data::fs::FaultFs;

    /// Bytes that `tensorboard.compat.proto.event_pb2` and TensorBoard's `RecordWriter` make of the same
    /// three events.
    #[test]
    fn the_bytes_are_those_that_tensorboard_writes() {
        let fs = FaultFs::new();
        let dir = Path::new("/tb");
        let mut events = EventFile::create(&fs, dir, 1234.5, 299).unwrap();
        events.scalars(1235.25, 300, &[("train/loss", 2.5), ("skip", f64::NAN), ("train/lr", 1e-3)]).unwrap();
        let name = fs.list(dir).unwrap().remove(0).name;
        let hex: String = fs.read(&dir.join(name)).unwrap().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    const GOLDEN: &str = concat!(
        "1800000000000000a37f4b220900000000004a93401a0d627261696e2e4576656e743a3265b8d3fb1000000000000000",
        "95fbfe180900000000004a934010ac023a02080160cea6773200000000000000241956ec0900000000004d934010ac02",
        "2a240a110a0a747261696e2f6c6f737315000020400a0f0a08747261696e2f6c72156f12833a3238e237",
    );
}
