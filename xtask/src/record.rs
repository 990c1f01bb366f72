//! `cargo xtask record`: runs the bench and keeps what it printed, for `benches/record/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::steps::{Result, Steps, cargo, root};

/// What to record.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model folders to bench, each with its name in the record: 7b-bf16=DIR
    #[arg(long, value_name = "NAME=DIR")]
    model: Vec<String>,
    /// Presets or recipes to train a step of, with flags after a comma: 44m,--tokens,256,--batch,2
    #[arg(long, value_name = "WHAT,FLAG…")]
    train: Vec<String>,
    /// Flags of the bench of a model, as one text; may be given more than once for several runs
    #[arg(long, value_name = "FLAGS", default_values = ["--pp 512 --tg 32 --first-token", "--pp 0 --tg 32 --batch 8"])]
    #[arg(allow_hyphen_values = true)]
    bench: Vec<String>,
    /// Instruction sets below the best to bench models and kernels with too
    #[arg(long, value_name = "ISA")]
    isa: Vec<String>,
    /// Other programs to run in turn, through the shell; what they print is kept: hf=python3 hf_zamba.py
    #[arg(long, value_name = "NAME=COMMAND")]
    also: Vec<String>,
    /// Words in the name of the file after the machine and the day
    #[arg(long, value_name = "WORDS")]
    note: Option<String>,
}

/// A vector instruction that the compiler has not put in its place is a call, and shows as a function of its own: a
/// closure that is not inlined may use no instructions of its tier. Such a kernel is right and many times too slow.
fn inlined(binary: &Path) -> Result {
    let bytes = fs::read(binary).map_err(|e| format!("{}: {e}", binary.display()))?;
    if calls_avx512(&bytes) {
        return Err("AVX-512 instructions are called as functions; perf shows which kernel calls them".into());
    }
    Ok(())
}

/// Whether a program has functions of the standard library's AVX-512 intrinsics, by their mangled names such as
/// `…9core_arch3x8610avx512vnni…`.
fn calls_avx512(program: &[u8]) -> bool {
    const MODULE: &[u8] = b"9core_arch3x86";
    program.windows(MODULE.len() + 8).filter(|w| w.starts_with(MODULE)).any(|w| {
        let length_and_name = &w[MODULE.len()..];
        let digits = length_and_name.iter().take_while(|b| b.is_ascii_digit()).count();
        length_and_name[digits..].starts_with(b"avx512")
    })
}

pub(crate) fn run(steps: &mut Steps, args: &Args) -> Result {
    steps.step("build", || cargo(&["build", "--release", "-p", "zamba-cli"], &[]))?;
    let binary = root().join("target/release/zamba");
    steps.step("vector instructions stand in their loops", || inlined(&binary))?;
    let mut runs = vec![];
    let mut bench = |steps: &mut Steps, name: &str, flags: &[String]| {
        steps.step(name, || {
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            let command = format!("zamba bench {}", flags.join(" "));
            let printed = output(Command::new(&binary).arg("bench").args(&flags).arg("--json"))?;
            let result: Value =
                serde_json::from_str(&printed).map_err(|e| format!("{command} printed no JSON: {e}"))?;
            runs.push(json!({ "name": name, "command": command, "result": result }));
            Ok(())
        })
    };
    let isas = || std::iter::once(None).chain(args.isa.iter().map(Some));
    for isa in isas() {
        let (name, flags) = with_isa("kernels".to_owned(), vec!["--gemm".to_owned()], isa);
        bench(steps, &name, &flags)?;
    }
    for what in &args.train {
        let mut flags = vec!["--train".to_owned()];
        flags.extend(what.split(',').map(str::to_owned));
        bench(steps, &format!("train {}", what.replace(',', " ")), &flags)?;
    }
    for model in &args.model {
        let (name, dir) = model.split_once('=').ok_or("--model takes NAME=DIR")?;
        for (isa, flags) in isas().flat_map(|isa| args.bench.iter().map(move |flags| (isa, flags))) {
            let mut all = vec!["-m".to_owned(), dir.to_owned()];
            all.extend(flags.split_whitespace().map(str::to_owned));
            let (name, all) = with_isa(format!("{name} {flags}"), all, isa);
            bench(steps, &name, &all)?;
        }
    }
    for other in &args.also {
        let (name, command) = other.split_once('=').ok_or("--also takes NAME=COMMAND")?;
        steps.step(name, || {
            let printed = output(Command::new("sh").arg("-c").arg(command))?;
            runs.push(json!({ "name": name, "printed": printed.lines().collect::<Vec<_>>() }));
            Ok(())
        })?;
    }
    steps.step("record", || write(args, runs))
}

fn with_isa(name: String, mut flags: Vec<String>, isa: Option<&String>) -> (String, Vec<String>) {
    let Some(isa) = isa else { return (name, flags) };
    flags.extend(["--isa".to_owned(), isa.clone()]);
    (format!("{name} on {isa}"), flags)
}

/// What a program prints on standard output.
fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.map_err(|e| format!("{shown}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{} from {shown}", output.status));
    }
    String::from_utf8(output.stdout).map_err(|e| format!("{shown}: {e}"))
}

/// Writes the record. Paths of models stay out of it, as do names of hosts: a record is of a kind of machine.
fn write(args: &Args, mut runs: Vec<Value>) -> Result {
    let dirs: Vec<&str> = args.model.iter().filter_map(|m| m.split_once('=')).map(|(_, dir)| dir).collect();
    runs.iter_mut().for_each(|run| hide(run, &dirs));
    let machine = runs.iter().find_map(|run| run["result"]["machine"]["cpu"].as_str());
    let machine = machine.unwrap_or("machine").to_owned();
    let threads = runs.iter().find_map(|run| run["result"]["machine"]["threads"].as_u64()).unwrap_or(0);
    let mut git = Command::new("git");
    let commit = output(git.args(["rev-parse", "--short", "HEAD"]).current_dir(root())).unwrap_or_default();
    let date = today();
    let record = json!({
        "date": date, "machine": machine, "threads": threads, "commit": commit.trim(), "runs": runs,
    });
    let note = args.note.iter().map(|note| format!("-{}", slug(note))).collect::<String>();
    let name = format!("{}-{threads}-threads-{date}{note}.json", slug(&machine));
    let path = root().join("benches/record").join(name);
    fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).map_err(|e| e.to_string())?;
    let text = format!("{record:#}\n");
    fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    println!("    {}", shown(&path).display());
    Ok(())
}

fn shown(path: &Path) -> PathBuf {
    path.strip_prefix(root()).unwrap_or(path).to_owned()
}

/// Replaces paths of models in every text by `DIR`.
fn hide(value: &mut Value, dirs: &[&str]) {
    match value {
        Value::String(text) => dirs.iter().for_each(|dir| *text = text.replace(dir, "DIR")),
        Value::Array(items) => items.iter_mut().for_each(|item| hide(item, dirs)),
        Value::Object(fields) => fields.values_mut().for_each(|field| hide(field, dirs)),
        _ => {}
    }
}

/// Letters and digits of a name, the rest as single hyphens.
fn slug(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty() && *w != "R");
    words.collect::<Vec<_>>().join("-").to_lowercase()
}

/// Today's date in universal time.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Year, month and day of a day counted from 1970 on (H. Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 1 March of year 0, so that leap days end a year.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_intrinsics_are_seen() {
        let name =
            |module: &str| calls_avx512(format!("x_ZN4core9core_arch3x86{module}5_name17h0E").as_bytes());
        assert!(name("7avx512f") && name("8avx512bw") && name("10avx512vnni"));
        assert!(!name("3avx") && !name("5xsave") && !calls_avx512(b""));
    }

    #[test]
    fn days_have_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_782), (2026, 11, 25));
    }

    #[test]
    fn names_and_paths_are_cleaned() {
        assert_eq!(slug("Intel(R) Xeon(R) Processor @ 2.60GHz"), "intel-xeon-processor-2-60ghz");
        let mut value = json!({ "a": ["-m /x/y --pp 1"] });
        hide(&mut value, &["/x/y"]);
        assert_eq!(value["a"][0], "-m DIR --pp 1");
    }
}
