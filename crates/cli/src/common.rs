//! What several commands share: which model, which device, and inputs from files.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use zamba::checkpoint::{Checkpoint, LoadOptions};
use zamba::config::FileDtype;
use zamba::{Zamba, ZambaConfig};
use zamba_kernels::cpu::{Cpu, Isa};
use zamba_kernels::reference::Reference;
use zamba_kernels::{Device, Dtype};

use crate::cost::Cost;
use crate::error::Stop;
use crate::out;
use crate::progress::{Progress, Unit};

/// Which model.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// A folder as Hugging Face transformers writes it, or the id of a model on the hub.
    #[arg(short = 'm', long, value_name = "DIR|OWNER/NAME", env = "ZAMBA_MODEL")]
    model: PathBuf,
    /// Never use the network: a hub id must be in the local cache.
    #[arg(long)]
    offline: bool,
}

/// Which kernels compute, and on how many threads.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Device")]
pub(crate) struct DeviceArgs {
    /// Worker threads [default: one per core].
    #[arg(short = 't', long, value_name = "N", env = "ZAMBA_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Instructions to use [default: the best that this machine has].
    #[arg(long, value_name = "NAME", env = "ZAMBA_ISA", value_parser = clap::builder::PossibleValuesParser::new(Isa::NAMES))]
    isa: Option<String>,
    /// `cpu`, or `reference`: the slow definition that every fast kernel is held to.
    #[arg(long, value_name = "NAME", env = "ZAMBA_DEVICE", default_value = "cpu")]
    device: DeviceName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum DeviceName {
    Cpu,
    Reference,
}
