//! Problems: deterministic random parameters and gradients, and the settings they are trained with.

use optimizers::{Builder, ParamGroup, Parameter, Rule};

/// Lengths at which loops, blocks, tasks and workgroups begin, end or overflow: none, one, a few, a vector ± 1, a workgroup
/// ± 1, a block ± 1, a task ± 1, some tasks, more than 16 bits count. Together they are enough to be shared out.
pub const AWKWARD: &[usize] = &[
    0, 1, 3, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 16_383, 16_384, 16_385, 29_999, 30_000, 30_001,
    70_001,
];

/// Shapes at which walks over rows and columns begin or end: no axis, one, two, a stack; rows and columns about a block of 64
/// rows, a tree of 256 lanes, a walk of 1,024 columns; rows more than twice the lanes; single rows and columns; none.
pub const SHAPES: &[&[usize]] = &[
    &[],
    &[7],
    &[5, 7],
    &[1, 1],
    &[1, 300],
    &[300, 1],
    &[63, 255],
    &[64, 256],
    &[65, 257],
    &[129, 3],
    &[3, 1023],
    &[2, 1025],
    &[3, 16, 1, 2],
    &[2, 3, 33, 65],
    &[0, 4],
    &[4, 0],
    &[200, 100],
    &[700, 9],
];

/// Stacks of small matrices, as of convolutions: most of them longer than a block of 1,024 elements, which ends inside a matrix.
pub const STACKS: &[&[usize]] = &[
    &[1, 1, 1],
    &[37, 33, 1, 1],
    &[157, 1, 7],
    &[157, 7, 1],
    &[1, 5, 3, 3],
    &[23, 11, 3, 3],
    &[2, 2, 5, 5],
    &[3, 15, 5, 5],
    &[2, 11, 7, 7],
    &[17, 8, 8],
    &[7, 31, 2, 6],
    &[16, 9, 8],
    &[16, 8, 9],
];

/// Random numbers that are the same everywhere (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n` > 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }

    /// Of either sign, from 2⁻²⁰ to 1: six decades, all of them equally likely.
    pub fn wide(&mut self) -> f32 {
        let bits = self.bits();
        let exponent = 127 - 1 - (bits >> 32) % 20;
        let [.., a, b, c, d] = ((bits & 0x807f_ffff) | exponent << 23).to_be_bytes();
        f32::from_be_bytes([a, b, c, d])
    }

    /// As many of [`wide`](Self::wide) as asked for.
    pub fn tensor(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.wide()).collect()
    }
}

/// Parameters, where they start, and the gradients of every step.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The parameters, named `w0`, `w1`, ….
    pub parameters: Vec<Parameter>,
    /// Their values before the first step.
    pub start: Vec<Vec<f32>>,
    /// For each step and parameter the gradient, if there is one.
    pub gradients: Vec<Vec<Option<Vec<f32>>>>,
}

impl Problem {
    /// One-dimensional parameters of these lengths, with gradients for all of them at every step.
    #[must_use]
    pub fn new(lens: &[usize], steps: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        Self {
            parameters: lens.iter().enumerate().map(|(i, &len)| Parameter::new(format!("w{i}"), [len])).collect(),
            start: lens.iter().map(|&len| random.tensor(len)).collect(),
            gradients: (0..steps).map(|_| lens.iter().map(|&len| Some(random.tensor(len))).collect()).collect(),
        }
    }

    /// Parameters of these shapes, with gradients for all of them at every step.
    #[must_use]
    pub fn shaped(shapes: &[&[usize]], steps: usize, seed: u64) -> Self {
        let lens: Vec<usize> = shapes.iter().map(|shape| shape.iter().product()).collect();
        let mut problem = Self::new(&lens, steps, seed);
        for (parameter, &shape) in problem.parameters.iter_mut().zip(shapes) {
            *parameter = Parameter::new(parameter.name(), shape);
        }
        problem
    }

    /// The same with about a third of the gradients taken away.
    #[must_use]
    pub fn with_gaps(mut self, seed: u64) -> Self {
        let mut random = Random::new(seed);
        for gradient in self.gradients.iter_mut().flatten() {
            if random.below(3) == 0 {
                *gradient = None;
            }
        }
        self
    }

    /// The number of steps.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.gradients.len()
    }
}

/// How a problem is trained: parameter `i` belongs to group `i` modulo the number of groups.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The rule.
    pub rule: Rule,
    /// For each group the rate and the weight decay.
    pub groups: Vec<(f64, f64)>,
    /// The factor that the gradients carry.
    pub loss_scale: f64,
}

impl Setup {
    /// All parameters with this rate, without decay or loss scale.
    #[must_use]
    pub fn new(rule: &Rule, lr: f64) -> Self {
        Self { rule: rule.clone(), groups: vec![(lr, 0.0)], loss_scale: 1.0 }
    }

    /// The group of a parameter.
    #[must_use]
    pub fn group_of(&self, parameter: usize) -> usize {
        parameter % self.groups.len()
    }

    /// The builder of an optimizer that takes these parameters in their order, whatever their groups. Groups that would have
    /// no parameter are left out.
    pub fn builder(&self, parameters: &[Parameter]) -> Builder {
        let members = |group| parameters.iter().skip(group).step_by(self.groups.len());
        let groups = (self.groups.iter().enumerate().take(parameters.len()))
            .map(|(i, &(lr, weight_decay))| ParamGroup::new(members(i)).lr(lr).weight_decay(weight_decay));
        Builder::new(self.rule.clone()).groups(groups).order_params(parameters).loss_scale(self.loss_scale)
    }
}
