//! Saves and loads the state of Adam over the 124 million parameters of GPT-2 small, and holds the time against that of `cp` and the
//! memory against the state's own.
//!
//! ```sh
//! cargo run --release --example checkpoint --features safetensors -- /a/folder/with/2/GB
//! ```

use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use optimizers::core::state::StateArray;
use optimizers::{Adam, CpuBackend, LoadOptions, Parameter, Result, StateMeta, StateSource, checkpoint};

/// Rounds of a measurement; the median counts.
const ROUNDS: usize = 5;

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let (path, copy) = (folder.join("optimizers-checkpoint.safetensors"), folder.join("optimizers-checkpoint.copy"));
    let parameters = gpt2();
    let elements: usize = parameters.iter().map(Parameter::len).sum();
    let mut optimizer = Adam::default().params(&parameters).build(CpuBackend::new())?;
    let state = optimizer.memory().bytes();

    // Numbers in all of the state, as after a step.
    let (meta, arrays) = (optimizer.state()?.meta().clone(), optimizer.state()?.arrays().to_vec());
    let _ = optimizer.load_state(&mut Numbers { meta, arrays }, &LoadOptions::default())?;

    let before = forget_peak();
    let len = checkpoint::save(&mut optimizer, &path)?;
    println!("{elements} parameters, {:.0} MB of state, a file of {:.0} MB", mb(state), mb(usize::try_from(len)?));
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        times[0].push(seconds(|| Ok(checkpoint::save(&mut optimizer, &path).map(drop)?))?);
        times[1].push(seconds(|| cp(&path, &copy))?);
        times[2].push(seconds(|| Ok(checkpoint::load(&mut optimizer, &path, &LoadOptions::default()).map(drop)?))?);
    }
    let [save, cp, load] = times.map(median);
    println!("cp, forced to the disk  {cp:.2} s  {:.0} MB/s", mb(state) / cp);
    println!("save                    {save:.2} s  {:.2} of cp's speed", cp / save);
    println!("load                    {load:.2} s  {:.2} of cp's speed", cp / load);
    if let (Some(before), Some(peak)) = (before, in_memory("VmHWM")) {
        println!(
            "most memory of the process: {:.0} MB, {:.1} MB more than before",
            mb(peak),
            mb(peak.saturating_sub(before))
        );
    }
    fs::remove_file(path)?;
    fs::remove_file(copy)?;
    Ok(())
}

/// The parameters of GPT-2 small.
fn gpt2() -> Vec<Parameter> {
    let mut parameters = vec![Parameter::new("wte.weight", [50_257, 768]), Parameter::new("wpe.weight", [1024, 768])];
    let norm =
        |name: String| [Parameter::new(format!("{name}.weight"), [768]), Parameter::new(format!("{name}.bias"), [768])];
    for layer in 0..12 {
        let linear = |name: &str, rows: usize, columns: usize| {
            let name = format!("h.{layer}.{name}");
            [
                Parameter::new(format!("{name}.weight"), [rows, columns]),
                Parameter::new(format!("{name}.bias"), [columns]),
            ]
        };
        parameters.extend(norm(format!("h.{layer}.ln_1")));
        parameters.extend(linear("attn.c_attn", 768, 2304));
        parameters.extend(linear("attn.c_proj", 768, 768));
        parameters.extend(norm(format!("h.{layer}.ln_2")));
        parameters.extend(linear("mlp.c_fc", 768, 3072));
        parameters.extend(linear("mlp.c_proj", 3072, 768));
    }
    parameters.extend(norm("ln_f".into()));
    parameters
}

/// A state that is made up while it is read.
struct Numbers {
    meta: StateMeta,
    arrays: Vec<StateArray>,
}

impl StateSource for Numbers {
    fn meta(&self) -> &StateMeta {
        &self.meta
    }

    fn arrays(&self) -> &[StateArray] {
        &self.arrays
    }

    fn read(&mut self, array: usize, first: usize, bytes: &mut [u8]) -> Result<()> {
        for (i, element) in bytes.chunks_exact_mut(4).enumerate() {
            let number = ((first + i) % 1009) as f32 + array as f32;
            element.copy_from_slice(&number.to_le_bytes());
        }
        Ok(())
    }
}

fn cp(from: &Path, to: &Path) -> std::result::Result<(), Box<dyn Error>> {
    // A file that is there would be overwritten in place, which is another thing than a new one.
    let _ = fs::remove_file(to);
    let status = Command::new("cp").arg("--reflink=never").arg(from).arg(to).status()?;
    if !status.success() {
        return Err("cp failed".into());
    }
    Ok(File::open(to)?.sync_all()?)
}

fn seconds(call: impl FnOnce() -> std::result::Result<(), Box<dyn Error>>) -> std::result::Result<f64, Box<dyn Error>> {
    let start = Instant::now();
    call()?;
    Ok(start.elapsed().as_secs_f64())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[allow(clippy::cast_precision_loss, reason = "to be read by people")]
fn mb(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// Lets the system count the most memory anew; what is in use now. Linux only.
fn forget_peak() -> Option<usize> {
    fs::write("/proc/self/clear_refs", "5").ok()?;
    in_memory("VmRSS")
}

/// A line of what the system says about this process, in bytes. Linux only.
fn in_memory(line: &str) -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse::<usize>().ok().map(|kb| kb * 1024)
}
