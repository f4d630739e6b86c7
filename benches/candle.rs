//! The AdamW of `candle-nn`, on the same cases.

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW};
use optimizers::{AdamW, DType, StateDType};
use rayon::ThreadPoolBuilder;

use crate::cases::{Case, Setting, THREADS};
use crate::check::{Sample, check};
use crate::memory::{SCALES, Tensors};
use crate::table::{Output, Row};
use crate::timing::{enough, middle, rounds, seconds};

/// Prints the rows whose label is wanted; whether there are any.
pub(crate) fn run(wanted: impl Fn(&str) -> bool, output: Output) -> bool {
    let mut any = false;
    let ParamsAdamW { lr, beta1, beta2, eps, weight_decay } = ParamsAdamW::default();
    let rule = AdamW { lr: lr.into(), beta1, beta2, eps, weight_decay, amsgrad: false };
    for case in Case::all() {
        for threads in THREADS {
            let (rule, dtype, state) = (rule.clone().into(), DType::F32, StateDType::F32);
            let setting = Setting { rule, threads, dtype, state, clip: false };
            let label = setting.label("candle", case.name);
            if wanted(&label) {
                if !any {
                    output.head();
                }
                any = true;
                let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
                output.row(&pool.install(|| measure(&case, &setting, &label)).expect("candle's step"));
            }
        }
    }
    any
}

fn measure(case: &Case, setting: &Setting, label: &str) -> Result<Row> {
    let [start, gradients] = SCALES.map(|scale| Tensors::new(setting.dtype, &case.lens(), scale));
    let tensors = |tensors: &Tensors| -> Result<Vec<Tensor>> {
        let tensor = |(bytes, shape): (&[u8], &Vec<usize>)| {
            Tensor::from_slice(bytemuck::cast_slice::<u8, f32>(bytes), shape.as_slice(), &Device::Cpu)
        };
        tensors.bytes().into_iter().zip(&case.shapes).map(tensor).collect()
    };
    let vars: Vec<Var> = tensors(&start)?.iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let mut grads = GradStore::default();
    for (var, grad) in vars.iter().zip(tensors(&gradients)?) {
        grads.insert(var, grad);
    }
    let mut optimizer = candle_nn::AdamW::new(vars.clone(), ParamsAdamW::default())?;

    let sample = Sample::new(case, setting);
    let (start, sampled) = (start.at(&sample.places), gradients.at(&sample.places));
    check(label, setting, &sample, start, &sampled, gradients.norm(), || {
        optimizer.step(&grads).expect("candle's step");
        let value = |&(tensor, element): &(usize, usize)| {
            let element = vars[tensor].flatten_all()?.get(element)?;
            element.to_scalar::<f32>().map(f64::from)
        };
        sample.places.iter().map(value).collect::<Result<_>>().expect("values")
    });

    let mut steps = |calls: u32| (0..calls).for_each(|_| optimizer.step(&grads).expect("candle's step"));
    let (calls, round) = enough(&mut steps);
    let times = (0..rounds(round)).map(|_| seconds(calls, &mut steps));
    Ok(Row::new("candle", setting, case, middle(times), 28 * case.elements()))
}
