//! What several commands share: which model, which device, and inputs from files.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use zamba::checkpoint::{self, Checkpoint, Content, FileDtype, LoadOptions, SaveOptions, Verify, Weights};
use zamba::hub::{self, HubOptions};
use zamba::spec::TensorSpec;
use zamba::{Zamba, ZambaConfig};
use zamba_kernels::Device;
use zamba_kernels::cpu::{Cpu, Isa};
use zamba_kernels::reference::Reference;

use crate::cost::Cost;
use crate::progress::{Progress, Unit};
use crate::{error, file, interrupt, out};

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

/// How weights get into memory.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct LoadArgs {
    /// `copy` reads the weights into memory. `map` uses the file in place: it starts at once if the system has the
    /// file in its cache, and shares it with others who do the same, but a file that is cut short or overwritten
    /// meanwhile ends the program or changes its results, sizes alone are checked against MANIFEST.json, and
    /// decoding is slower by what small pages cost.
    #[arg(long, value_name = "HOW", env = "ZAMBA_WEIGHTS", default_value = "copy")]
    weights: WeightsName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum WeightsName {
    Copy,
    Map,
}

impl LoadArgs {
    /// Weights of their own.
    pub(crate) const COPY: LoadArgs = LoadArgs { weights: WeightsName::Copy };

    fn weights(self) -> Weights {
        match self.weights {
            WeightsName::Copy => Weights::Copy,
            WeightsName::Map => Weights::Map,
        }
    }
}

/// Which kernels compute, and on how many threads.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Device")]
pub(crate) struct DeviceArgs {
    /// Worker threads [default: one per core].
    #[arg(short = 't', long, value_name = "N", env = "ZAMBA_THREADS")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Instructions to use [default: the best that this machine has].
    #[arg(long, value_name = "NAME", env = "ZAMBA_ISA")]
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(Isa::NAMES))]
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

impl ModelArgs {
    pub(crate) fn new(model: PathBuf, offline: bool) -> Self {
        ModelArgs { model, offline }
    }

    /// The model as it was named.
    pub(crate) fn name(&self) -> String {
        self.model.display().to_string()
    }

    /// The model as requests to a server name it: by its hub id, or by its folder without the way there.
    pub(crate) fn short_name(&self) -> String {
        let folder = self.model.canonicalize().ok();
        let last = folder.as_deref().and_then(Path::file_name);
        last.map_or_else(|| self.name(), |name| name.to_string_lossy().into_owned())
    }

    /// The folder of the model; one that is named by its hub id is downloaded first.
    pub(crate) fn folder(&self) -> anyhow::Result<PathBuf> {
        if self.model.exists() {
            return Ok(self.model.clone());
        }
        download(&self.model, self.offline)
    }
}

impl DeviceArgs {
    /// The device, ready to compute.
    pub(crate) fn open(&self) -> anyhow::Result<Arc<dyn Device>> {
        Ok(match self.device {
            DeviceName::Reference => Arc::new(Reference::new()),
            DeviceName::Cpu => Arc::new(Cpu::with(self.isa()?, self.threads()?)),
        })
    }

    /// The fast device, for what only it can do.
    pub(crate) fn cpu(&self) -> anyhow::Result<Arc<Cpu>> {
        match self.device {
            DeviceName::Reference => bail!("--device reference has no speed worth measuring; use cpu"),
            DeviceName::Cpu => Ok(Arc::new(Cpu::with(self.isa()?, self.threads()?))),
        }
    }

    /// The name of the instructions that the device will use.
    pub(crate) fn isa_name(&self) -> anyhow::Result<String> {
        Ok(match self.device {
            DeviceName::Reference => Isa::NAMES[0].to_owned(),
            DeviceName::Cpu => self.isa()?.to_string(),
        })
    }

    fn isa(&self) -> anyhow::Result<Isa> {
        self.isa.as_deref().map_or_else(|| Ok(Isa::detect()), Isa::named).context("--isa")
    }

    fn threads(&self) -> anyhow::Result<usize> {
        match self.threads {
            Some(threads) => Ok(threads.into()),
            None => Ok(std::thread::available_parallelism().map_or(1, |n| n.get())),
        }
    }
}

/// Opens a model folder whose weights are to be loaded as `how` says; none is read yet.
pub(crate) fn open(folder: &Path, how: LoadArgs) -> anyhow::Result<Checkpoint> {
    let manifest = match how.weights() {
        Weights::Copy => Verify::Everything,
        // Hashing all weights takes many times as long as starting with them.
        Weights::Map => Verify::Sizes,
    };
    open_with(folder, &LoadOptions { manifest, ..LoadOptions::default() })
}

/// As [`open`], with a choice of what is checked.
pub(crate) fn open_with(folder: &Path, options: &LoadOptions) -> anyhow::Result<Checkpoint> {
    Checkpoint::open(folder, options).with_context(|| format!("cannot load {}", folder.display()))
}

/// Reads the weights onto a device, with a progress bar.
pub(crate) fn load(checkpoint: &Checkpoint, device: &DeviceArgs, how: LoadArgs) -> anyhow::Result<Zamba> {
    load_on(checkpoint, device.open()?, how)
}

/// As [`load`], onto a device that is there already.
pub(crate) fn load_on(
    checkpoint: &Checkpoint,
    device: Arc<dyn Device>,
    how: LoadArgs,
) -> anyhow::Result<Zamba> {
    if how.weights() == Weights::Copy {
        let cost = Cost::of(&checkpoint.config, checkpoint.config.dtype);
        fits(cost.weights).with_context(|| format!("cannot load {}", checkpoint.path().display()))?;
    }
    let mut progress = Progress::new("loading", checkpoint.total_bytes(), Unit::Bytes);
    // Reading leaves nothing behind, so it need not be ended in order.
    interrupt::leave_at_once(Some(error::FAILURE));
    let loaded = Zamba::load(checkpoint, device, None, how.weights(), &mut |bytes| progress.set(bytes));
    interrupt::leave_at_once(None);
    loaded.with_context(|| format!("cannot load {}", checkpoint.path().display()))
}

/// How to store weights, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DtypeName {
    F32,
    Bf16,
    F16,
}

impl From<DtypeName> for FileDtype {
    fn from(name: DtypeName) -> Self {
        match name {
            DtypeName::F32 => FileDtype::F32,
            DtypeName::Bf16 => FileDtype::Bf16,
            DtypeName::F16 => FileDtype::F16,
        }
    }
}

/// Writes a model folder of plain weights with a progress bar, tensor by tensor as `fill` gives them. Ctrl-C
/// and errors leave nothing.
pub(crate) fn save(
    out: &Path,
    config: &ZambaConfig,
    options: &SaveOptions,
    fill: &mut dyn FnMut(&TensorSpec, &mut Vec<f32>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let config = ZambaConfig { quantization: None, ..config.clone() };
    save_quantised("writing", out, &config, options, &mut |spec, content| fill(spec, &mut content.numbers))
}

/// As [`save`], of weights some of which may be quantised, under a title.
pub(crate) fn save_quantised(
    title: &str,
    out: &Path,
    config: &ZambaConfig,
    options: &SaveOptions,
    fill: &mut dyn FnMut(&TensorSpec, &mut Content) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let total = config.bytes_of_weights(options.dtype);
    file::check_folder(out, options.replace, total)?;
    let mut progress = Progress::new(title, total, Unit::Bytes);
    let mut failed = None;
    let saved = checkpoint::save_quantised(out, config, options, &mut |spec, content| {
        let filled = interrupt::check("nothing was written")
            .map_err(anyhow::Error::from)
            .and_then(|()| fill(spec, content));
        if let Err(error) = filled {
            failed = Some(error);
            return Err(io::Error::other("stopped"));
        }
        let bytes =
            if content.bytes.is_empty() { spec.len() * options.dtype.size() } else { content.bytes.len() };
        progress.add(bytes as u64);
        Ok(())
    });
    match failed {
        Some(error) => Err(error),
        None => saved.with_context(|| format!("cannot write {}", out.display())),
    }
}

/// The context as a count, if the machine has the memory that its state and token cache may come to need.
pub(crate) fn check_context(config: &ZambaConfig, tokens: u64) -> anyhow::Result<usize> {
    let bytes = Cost::of(config, config.dtype).sequence(tokens);
    check_bytes(bytes, &format!("a context of {tokens} tokens does not fit; choose a smaller --ctx"))?;
    Ok(usize::try_from(tokens)?)
}

/// Fails with `message` unless the system would give that much memory; none stands for more than can be
/// counted.
pub(crate) fn check_bytes(bytes: Option<u64>, message: &str) -> anyhow::Result<()> {
    bytes.context("more than can be counted").and_then(fits).with_context(|| message.to_owned())
}

/// Whether the system would give that much memory. It is asked, and given back at once: an allocation that
/// fails later ends the process without a word.
fn fits(bytes: u64) -> anyhow::Result<()> {
    let mut trial: Vec<u8> = vec![];
    let reserved = usize::try_from(bytes).is_ok_and(|bytes| trial.try_reserve_exact(bytes).is_ok());
    if !reserved {
        bail!("{} of memory are needed, more than the system gives", out::bytes(bytes));
    }
    Ok(())
}

/// Refuses ids that the model has no embedding for.
pub(crate) fn check_tokens(tokens: &[u32], vocab: usize) -> anyhow::Result<()> {
    match tokens.iter().find(|&&token| token as usize >= vocab) {
        Some(token) => {
            bail!("token {token} is outside the vocabulary, which has {vocab} tokens; use ids below that")
        }
        None => Ok(()),
    }
}

/// The text of a file, or of standard input for `-`.
pub(crate) fn read_text(path: &Path) -> anyhow::Result<String> {
    let mut bytes = vec![];
    let name = if path.as_os_str() == "-" { "standard input".to_owned() } else { path.display().to_string() };
    let read = match path.as_os_str().to_str() {
        Some("-") => io::stdin().lock().read_to_end(&mut bytes).map(drop),
        _ => std::fs::read(path).map(|contents| bytes = contents),
    };
    read.with_context(|| format!("cannot read {name}"))?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow::anyhow!("{name} is not UTF-8 text from byte {at} on; convert it first")
    })
}

/// The folder of a model on the hub, downloaded as far as it is not in the cache.
fn download(name: &Path, offline: bool) -> anyhow::Result<PathBuf> {
    let unknown = || format!("there is no folder {}", name.display());
    let name = name.to_str().with_context(unknown)?;
    from_hub(offline, |options, progress| hub::resolve(name, options, progress)).map_err(anyhow::Error::from)
}

/// Asks the hub for something, with a progress bar.
pub(crate) fn from_hub<T>(
    offline: bool,
    ask: impl FnOnce(&HubOptions, &mut dyn FnMut(hub::Progress<'_>)) -> Result<T, hub::HubError>,
) -> Result<T, hub::HubError> {
    let mut options = HubOptions::from_env(|variable| std::env::var(variable).ok());
    options.offline |= offline;
    let mut bar: Option<Progress> = None;
    // What has arrived is kept for the next time, so there is nothing to finish when the user has had enough.
    interrupt::leave_at_once(Some(error::FAILURE));
    let found = ask(&options, &mut |event| match event {
        hub::Progress::Start { bytes, .. } => bar = Some(Progress::new("downloading", bytes, Unit::Bytes)),
        hub::Progress::Bytes { total_done, .. } => bar.iter_mut().for_each(|bar| bar.set(total_done)),
        hub::Progress::Retry { file, reason } => {
            note(bar.as_ref(), &format!("{file}: {reason}; trying again"))
        }
        hub::Progress::Cached { reason } => note(None, &format!("using the copy in the cache: {reason}")),
    });
    interrupt::leave_at_once(None);
    found
}

fn note(bar: Option<&Progress>, words: &str) {
    match bar {
        Some(bar) => bar.suspend(|| out::note(words)),
        None => out::note(words),
    }
}

/// Reads sizes such as `500MB` and `2GiB`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let error = || format!("`{text}` is not a size such as 500MB, 5GB or 2GiB");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KIB" => 1 << 10,
        "MIB" => 1 << 20,
        "GIB" => 1 << 30,
        "TIB" => 1 << 40,
        _ => return Err(error()),
    };
    let number: f64 = number.parse().map_err(|_| error())?;
    let bytes = number * factor as f64;
    if bytes >= 1.0 && bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_beyond_all_memory_are_refused() {
        let config = ZambaConfig::preset("tiny").unwrap();
        assert_eq!(check_context(&config, 100).unwrap(), 100);
        for tokens in [1 << 50, u64::MAX] {
            let error = format!("{:#}", check_context(&config, tokens).unwrap_err());
            assert!(error.contains("--ctx") && error.contains(&tokens.to_string()), "{error}");
        }
    }

    #[test]
    fn sizes_are_read_as_huggingface_reads_them() {
        assert_eq!(parse_size("5GB"), Ok(5_000_000_000));
        assert_eq!(parse_size("1.5 MiB"), Ok(3 << 19));
        assert_eq!(parse_size("100"), Ok(100));
        for bad in ["", "GB", "5XB", "-5GB", "0", "1e400", "nan"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
