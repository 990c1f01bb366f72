//! Quantised tensors of a file: two tensors in the file for one of the model.
//!
//! A matrix `NAME` is stored as `NAME.q`, bytes of shape `[rows / 16, cols / 128, bytes of a block]`, and
//! `NAME.scale`, F16 of shape `[rows / 16, cols / 128, 16]`; see [`zamba_kernels::quant`] for what the bytes
//! mean. One after the other they are what lies in memory.

use std::collections::BTreeMap;

use zamba_kernels::quant::{GROUP, ROWS, block_bytes};

use super::file::OpenFile;
use super::safetensors::Entry;
use super::{LoadError, Located};
use crate::config::{FileDtype, QuantFormat};
use crate::spec::TensorSpec;

/// What the names of the two tensors end in.
pub(super) const QUANTS: &str = ".q";
pub(super) const SCALES: &str = ".scale";

/// A tensor of the files: where it is, and where its scales are if it is quantised.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) file: usize,
    pub(super) entry: Entry,
    pub(super) scales: Option<(usize, Entry)>,
}

/// Joins integers and scales under the name of the tensor that they are.
pub(super) fn join(
    mut plain: BTreeMap<String, (usize, Entry)>,
    quantised: bool,
    files: &[OpenFile],
) -> Result<BTreeMap<String, Found>, LoadError> {
    let bytes = |(_, (_, entry)): &(&String, &(usize, Entry))| entry.dtype == FileDtype::U8;
    let names: Vec<String> = plain.iter().filter(bytes).map(|(name, _)| name.clone()).collect();
    let mut found = BTreeMap::new();
    for name in names {
        let Some((file, entry)) = plain.remove(&name) else { continue };
        let Some(base) = name.strip_suffix(QUANTS).filter(|_| quantised) else {
            let (file, dtype) = (files[file].name.clone(), "U8".to_owned());
            return Err(LoadError::UnsupportedDtype { file, tensor: name, dtype });
        };
        let Some(scales) = plain.remove(&format!("{base}{SCALES}")) else {
            return Err(LoadError::NoScales { tensor: base.to_owned() });
        };
        if plain.contains_key(base) {
            let (first, second) = (base.to_owned(), name);
            return Err(LoadError::Twofold { first, second });
        }
        found.insert(base.to_owned(), Found { file, entry, scales: Some(scales) });
    }
    found.extend(plain.into_iter().map(|(name, (file, entry))| (name, Found { file, entry, scales: None })));
    Ok(found)
}

/// Checks types and shapes of a tensor that the configuration says is quantised.
pub(super) fn checked(
    spec: &TensorSpec,
    format: QuantFormat,
    name: &str,
    found: &Found,
) -> Result<Located, LoadError> {
    let Some((scale_file, scales)) = &found.scales else {
        let (found, expected) = (found.entry.dtype.safetensors_name(), format.name());
        return Err(LoadError::Storage { tensor: name.to_owned(), found, expected });
    };
    let (rows, cols) = spec.rows_cols();
    let blocks = [rows / ROWS, cols / GROUP];
    check_shape(&found.entry, [blocks[0], blocks[1], block_bytes(format.dtype())])?;
    check_shape(scales, [blocks[0], blocks[1], ROWS])?;
    if scales.dtype != FileDtype::F16 {
        let found = scales.dtype.safetensors_name();
        return Err(LoadError::Storage { tensor: scales.name.clone(), found, expected: "F16" });
    }
    Ok(Located {
        name: name.to_owned(),
        file: found.file,
        begin: found.entry.begin,
        bytes: (found.entry.end - found.entry.begin) as usize,
        dtype: FileDtype::U8,
        scales: Some(Scales {
            file: *scale_file,
            begin: scales.begin,
            bytes: (scales.end - scales.begin) as usize,
        }),
    })
}

fn check_shape(entry: &Entry, expected: [usize; 3]) -> Result<(), LoadError> {
    if entry.shape.iter().copied().eq(expected.map(|n| n as u64)) {
        return Ok(());
    }
    let (tensor, found) = (entry.name.clone(), entry.shape.clone());
    Err(LoadError::Shape { tensor, found, expected: expected.to_vec() })
}

/// Where the scales of a quantised tensor are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scales {
    pub(super) file: usize,
    pub(super) begin: u64,
    pub(super) bytes: usize,
}

/// Refuses integers that [`zamba_kernels::quant`] does not have; `at` is where the bytes stand.
pub(super) fn check_quants(
    format: QuantFormat,
    tensor: &str,
    at: usize,
    bytes: &[u8],
) -> Result<(), LoadError> {
    match (format, bytes.iter().position(|byte| *byte == 0)) {
        (QuantFormat::Q8, Some(first)) => {
            let tensor = format!("{tensor}{QUANTS}");
            Err(LoadError::BadQuant { tensor, what: "the byte 0", at: at + first })
        }
        _ => Ok(()),
    }
}

/// Refuses scales that are negative or not finite; `at` is where the bytes stand among those of all scales.
pub(super) fn check_scales(tensor: &str, at: usize, bytes: &[u8]) -> Result<(), LoadError> {
    const INFINITY: u16 = 0x7c00;
    let bad = bytes.as_chunks().0.iter().position(|two| u16::from_le_bytes(*two) >= INFINITY);
    match bad {
        Some(first) => {
            let (tensor, what) = (format!("{tensor}{SCALES}"), "a scale that is negative or not finite");
            Err(LoadError::BadQuant { tensor, what, at: at / 2 + first })
        }
        None => Ok(()),
    }
}
