//! Memory that is filled with bytes, or is a part of a file.

use std::fs::File;
use std::io::Write;
use std::sync::Mutex;

use zamba_kernels::cpu::Cpu;
use zamba_kernels::reference::Reference;
use zamba_kernels::{Buf, Device, Dtype, FileMap};

fn devices() -> [Box<dyn Device>; 2] {
    [Box::new(Cpu::new(Some(3))), Box::new(Reference::new())]
}

/// Byte `at` of the bf16 numbers 1, 2, 3 … 100, 1, 2 …
fn byte(at: usize) -> u8 {
    let number = (at / 2 % 100 + 1) as f32;
    (number.to_bits() >> 16).to_le_bytes()[at % 2]
}

fn check(dev: &dyn Device, buf: &Buf) {
    let mut host = vec![0.0; buf.len()];
    dev.download(&mut host, buf, 0);
    let wrong = host.iter().enumerate().find(|(i, x)| **x != (i % 100 + 1) as f32);
    assert_eq!(wrong, None, "{}", dev.name());
}

#[test]
fn bytes_fill_every_element_once() {
    for dev in devices() {
        for len in [0, 1, 100, (1 << 20) + 1, (5 << 20) + 77] {
            let mut buf = dev.alloc(Dtype::Bf16, len);
            let pieces = Mutex::new(vec![]);
            dev.upload_bytes(&mut buf, &|at, bytes| {
                pieces.lock().unwrap().push((at, bytes.len()));
                bytes.iter_mut().enumerate().for_each(|(i, b)| *b = byte(at + i));
            });
            check(&*dev, &buf);
            let seen = Mutex::new(0);
            dev.download_bytes(&buf, &|at, bytes| {
                assert!(bytes.iter().enumerate().all(|(i, b)| *b == byte(at + i)));
                *seen.lock().unwrap() += bytes.len();
            });
            assert_eq!(seen.into_inner().unwrap(), 2 * len);
            let mut pieces = pieces.into_inner().unwrap();
            pieces.sort_unstable();
            let end = pieces.iter().fold(0, |end, (at, n)| {
                assert!(*at == end && at % 64 == 0, "{pieces:?}");
                end + n
            });
            assert_eq!(end, 2 * len);
        }
    }
}

#[test]
fn a_part_of_a_file_is_read_in_place() {
    let path = std::env::temp_dir().join(format!("zamba-memory-{}", std::process::id()));
    let mut file = File::create_new(&path).unwrap();
    file.write_all(&[0; 128]).unwrap();
    file.write_all(&(0..2000).map(byte).collect::<Vec<_>>()).unwrap();
    let map = FileMap::new(&File::open(&path).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
    for dev in devices() {
        let buf = dev.map(Dtype::Bf16, 1000, &map, 128).unwrap();
        assert!(buf.is_file() && !dev.alloc(Dtype::Bf16, 1000).is_file());
        check(&*dev, &buf);
        assert!(dev.map(Dtype::Bf16, 999, &map, 130).is_none(), "not aligned");
        assert!(dev.map(Dtype::Bf16, 1001, &map, 128).is_none(), "beyond the end");
        assert!(dev.map(Dtype::F32, usize::MAX / 2, &map, 0).is_none(), "beyond all ends");
    }
}
