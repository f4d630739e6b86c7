//! A rule of your own, on both backends: `cargo run --release --example custom_rule`.
//!
//! The rule is Signum (Bernstein et al. 2018, arXiv 1802.04434): momentum, of which only the sign is used.
//!
//! ```text
//! m ← β m + (1 − β) g                            (1)
//! p ← p − γ sign(m)                              (2)
//! ```
//!
//! It is written three times, as the built-in rules are: as numbers made once a step, as a Rust loop and as WGSL. Everything
//! else is the library's: groups, rates, decay, loss scale, memory. The Rust and the WGSL do the same arithmetic in the same
//! order, so both backends give the same numbers, bit for bit where the GPU rounds as IEEE 754 says.

use std::process::ExitCode;

use optimizers::rule::{At, CustomRule, Slot, StepScalars, UpdateRule};
use optimizers::{Backend, Builder, Error, ParamGroup, Parameter, Rate, Result, Rule, schedule::CosineDecay};

#[derive(Debug)]
struct Signum {
    lr: Rate,
    beta: f64,
}

impl UpdateRule for Signum {
    fn name(&self) -> &'static str {
        "signum"
    }

    fn lr(&self) -> &Rate {
        &self.lr
    }

    fn weight_decay(&self) -> f64 {
        0.0
    }

    fn validate(&self) -> Result<()> {
        if (0.0..1.0).contains(&self.beta) {
            return Ok(());
        }
        Err(Error::HyperParameter { name: "signum.beta".into(), expected: "in [0, 1)", got: self.beta.to_string() })
    }

    fn slots(&self) -> Vec<Slot> {
        vec![Slot::new("momentum", 0.0)]
    }

    #[allow(clippy::cast_possible_truncation, reason = "rounding to the nearest f32 is the purpose")]
    fn scalars(&self, at: &At) -> StepScalars {
        [at.lr as f32, self.beta as f32, (1.0 - self.beta) as f32, 0.0].into()
    }

    fn scalar_names(&self) -> &'static [&'static str] {
        &["lr", "beta", "one_minus_beta", "pad"]
    }
}

impl CustomRule for Signum {
    fn update(&self, step: &StepScalars, p: &mut [f32], g: &[f32], slots: &mut [&mut [f32]]) {
        let ([lr, beta, one_minus_beta, _], [m]) = (step.floats(), slots) else { return };
        for ((p, &g), m) in p.iter_mut().zip(g).zip(m.iter_mut()) {
            // (1) m ← β m + (1 − β) g
            *m = beta * *m + one_minus_beta * g;
            // (2) p ← p − γ sign(m)
            if *m > 0.0 {
                *p -= lr;
            }
            if *m < 0.0 {
                *p += lr;
            }
        }
    }

    fn wgsl(&self) -> &str {
        "
struct Step {
    lr: f32,
    beta: f32,
    one_minus_beta: f32,
    pad: f32,
}

fn update(s: Step, p: ptr<function, f32>, g: f32, m: ptr<function, f32>) {
    // (1) m ← β m + (1 − β) g
    *m = s.beta * *m + s.one_minus_beta * g;
    // (2) p ← p − γ sign(m)
    if (*m > 0.0) {
        *p = *p - s.lr;
    }
    if (*m < 0.0) {
        *p = *p + s.lr;
    }
}
"
    }
}

/// Walks from 1 towards the targets 0, 0.01, 0.02, …; the weights at the end.
fn train(backend: Backend) -> Result<Vec<f32>> {
    let rate = CosineDecay::new(0.0, 0.02, 200)?;
    // A group of its own changes β: with every update a rule with another one takes the rule's place.
    let group =
        ParamGroup::new([Parameter::new("weight", [100])]).weight_decay(1e-3).vary(|rule: &mut Rule, update| {
            let beta = if update < 20 { 0.5 } else { 0.9 };
            *rule = Rule::custom(Signum { lr: rule.spec().lr().clone(), beta });
        });
    let rule = Rule::custom(Signum { lr: rate.into(), beta: 0.9 });
    let mut optimizer = Builder::new(rule).groups([group]).build(backend)?;

    let targets: Vec<f32> = (0_u8..100).map(|i| f32::from(i) / 100.0).collect();
    let mut weight = vec![1.0_f32; 100];
    for _ in 0..200 {
        let gradient: Vec<f32> = weight.iter().zip(&targets).map(|(w, target)| w - target).collect();
        let report = optimizer.step(&mut [(&mut weight).into()], &[(&gradient).into()])?;
        assert!(report.applied(), "nothing skips a step here");
    }
    let farthest = weight.iter().zip(&targets).map(|(w, target)| (w - target).abs()).fold(0.0, f32::max);
    println!(
        "{:4} {:60} farthest from its target: {farthest:.4}",
        optimizer.backend().name(),
        optimizer.backend().describe()
    );
    Ok(weight)
}

fn run() -> Result<bool> {
    let cpu = train(Backend::Cpu)?;
    let gpu = train(Backend::Gpu)?;
    let same = cpu.iter().zip(&gpu).filter(|(cpu, gpu)| cpu.to_bits() == gpu.to_bits()).count();
    println!("{same} of {} weights are the same, bit for bit", cpu.len());
    Ok(cpu.iter().zip(&gpu).all(|(cpu, gpu)| (cpu - gpu).abs() < 0.05))
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("error: the backends disagree");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
