//! Row-sparse gradients: what rules do with them against a naive `f64` loop over rows, their laws, and every refusal.

use half::{bf16, f16};
use optim_tests::reference::{Judge, Now, judge};
use optim_tests::tolerance::GOLDEN;
use optim_tests::{Bound, Random, Run, Target, compare, on_every_backend};
use optimizers::core::rule::Sparse;
use optimizers::{
    Adam, Builder, DType, Error, Grad, IntoBackend, LazyAdam, Master, Momentum, Optimizer, ParamGroup, Parameter,
    Result, Rule, Sgd, StateDType, checkpoint,
};

/// The rules that take row-sparse gradients.
fn sparse_rules() -> Vec<Rule> {
    let mut rules = Rule::all();
    rules.retain(|rule| rule.spec().sparse() != Sparse::Unsupported);
    assert!(rules.iter().any(|rule| rule.spec().sparse() == Sparse::AllRows), "some update all rows");
    assert!(rules.iter().any(|rule| rule.spec().sparse() == Sparse::ListedRows), "some update the listed ones");
    rules
}

/// A gradient: the rows that it lists and their values, or one for all elements.
#[derive(Debug, Clone)]
enum Gradient {
    Rows(Vec<u32>, Vec<f32>),
    Dense(Vec<f32>),
}

impl Gradient {
    /// The values of all rows; those of a row that stands more than once are added in the list's order.
    fn dense(&self, len: usize) -> Vec<f32> {
        match self {
            Self::Dense(g) => g.clone(),
            Self::Rows(indices, values) => {
                let mut g = vec![0.0; len];
                let width = values.len() / indices.len().max(1);
                for (nth, &row) in indices.iter().enumerate() {
                    for i in 0..width {
                        g[row as usize * width + i] += values[nth * width + i];
                    }
                }
                g
            }
        }
    }
}

impl<'a> From<&'a Gradient> for Grad<'a> {
    fn from(gradient: &'a Gradient) -> Self {
        match gradient {
            Gradient::Rows(indices, values) => Grad::rows(indices, values),
            Gradient::Dense(g) => g.into(),
        }
    }
}

/// A table in training.
#[derive(Debug, Clone)]
struct Table {
    rule: Rule,
    shape: Vec<usize>,
    start: Vec<f32>,
    lr: f64,
    weight_decay: f64,
    loss_scale: f64,
}

impl Table {
    fn new(rule: &Rule, shape: &[usize], seed: u64) -> Self {
        let (rule, shape) = (rule.clone(), shape.to_vec());
        let start = Random::new(seed).tensor(shape.iter().product());
        Self { rule, shape, start, lr: 1e-2, weight_decay: 0.0, loss_scale: 1.0 }
    }

    /// With decay, and a loss scale that is no power of two.
    fn shaped(self) -> Self {
        Self { weight_decay: 0.1, loss_scale: 3.0, ..self }
    }

    fn width(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Lists of rows drawn at random, so that some stand more than once and none is in order.
    fn random(&self, lists: &[usize], seed: u64) -> Vec<Gradient> {
        let mut random = Random::new(seed);
        let lists = lists.iter().map(|&listed| {
            let row = |random: &mut Random| u32::try_from(random.below(self.shape[0] as u64)).unwrap();
            let indices: Vec<u32> = (0..listed).map(|_| row(&mut random)).collect();
            let values = random.tensor(listed * self.width());
            Gradient::Rows(indices, values)
        });
        lists.collect()
    }

    fn optimizer(&self, backend: impl IntoBackend) -> Optimizer {
        let group = ParamGroup::new([Parameter::new("table", self.shape.clone())]);
        let group = group.lr(self.lr).weight_decay(self.weight_decay);
        Builder::new(self.rule.clone()).groups([group]).loss_scale(self.loss_scale).build(backend).unwrap()
    }

    fn train(&self, backend: impl IntoBackend, gradients: &[Gradient], by: &str) -> Run {
        let (mut optimizer, mut p) = (self.optimizer(backend), self.start.clone());
        for gradient in gradients {
            let report = optimizer.step(&mut [(&mut p).into()], &[gradient.into()]).unwrap();
            assert!(report.applied(), "{report:?}");
        }
        Run::of(&optimizer, &[p]).unwrap().by(by)
    }
}

#[track_caller]
fn assert_same(table: &Table, a: &Run, b: &Run) {
    if let Err(worst) = compare(a, b, &Bound::Bits) {
        panic!("{:?} {:?}\n{worst}", table.rule, table.shape);
    }
}

/// The naive loop: every row is a tensor with a judge of its own. An unlisted row is updated by a gradient of zeros, without
/// decay, or it is not.
fn naive(table: &Table, gradients: &[Gradient]) -> Vec<(String, Vec<f64>)> {
    let width = table.width();
    let wide = |x: &f32| f64::from(*x);
    let mut rows: Vec<(Box<dyn Judge>, Vec<f64>)> = (table.start.chunks_exact(width))
        .map(|row| (judge(&table.rule, &[width]), row.iter().map(wide).collect()))
        .collect();
    for (t, gradient) in (1..).zip(gradients) {
        let Gradient::Rows(indices, values) = gradient else { panic!("rows only") };
        let now = Now { t, lr: table.lr, weight_decay: 0.0, shake: 0.0 };
        for (row, (judge, p)) in (0..).zip(&mut rows) {
            let mut g = vec![0.0; width];
            for (nth, _) in indices.iter().enumerate().filter(|(_, index)| **index == row) {
                for i in 0..width {
                    g[i] += f64::from(values[nth * width + i]) / table.loss_scale;
                }
            }
            if indices.contains(&row) {
                for i in 0..width {
                    g[i] += table.weight_decay * p[i];
                }
            } else if table.rule.spec().sparse() == Sparse::ListedRows {
                continue;
            }
            judge.step(p, &g, &now);
        }
    }
    let slots: Vec<&str> = rows[0].0.slots().iter().map(|(name, _)| *name).collect();
    let slots = slots.iter().enumerate().map(|(nth, name)| {
        (format!("table.{name}"), rows.iter().flat_map(|(judge, _)| judge.slots()[nth].1.to_vec()).collect())
    });
    let slots: Vec<_> = slots.collect();
    [("table".to_owned(), rows.iter().flat_map(|(_, p)| p.clone()).collect())].into_iter().chain(slots).collect()
}

on_every_backend! {
    /// Every rule, several widths, rows listed more than once, with and without decay and loss scale.
    fn naive_loop(target) {
        for (seed, width) in (20..).zip([1, 3, 64, 130]) {
            for rule in sparse_rules() {
                let plain = Table::new(&rule, &[13, width], seed);
                for table in [plain.clone().shaped(), plain] {
                    // The first update lists every row: what a rule does at a parameter's first update, it does for the whole.
                    let mut gradients = table.random(&[0, 8, 1, 30, 0, 5], seed + 100);
                    let all = (0..13).rev().collect();
                    gradients[0] = Gradient::Rows(all, Random::new(seed + 200).tensor(13 * width));
                    let got = table.train(target, &gradients, "got");
                    for (name, expected) in naive(&table, &gradients) {
                        let array = got.arrays().iter().find(|array| array.name == name);
                        let array = array.unwrap_or_else(|| panic!("{rule:?} has no {name}"));
                        assert_eq!(array.values.len(), expected.len(), "{name}");
                        let largest = expected.iter().fold(1e-30, |max: f64, x| max.max(x.abs()));
                        for (i, (a, b)) in array.values.iter().zip(&expected).enumerate() {
                            let near = (a - b).abs() <= GOLDEN * largest;
                            assert!(near, "{rule:?}, width {width}, {name}[{i}]: {a:e}, expected {b:e}");
                        }
                    }
                }
            }
        }
    }

    /// The naive loop by hand, where a mistake in both it and the library cannot hide: dampening spares a parameter's first
    /// update, not a row's.
    fn dampening_is_the_parameters(target) {
        let rule = Sgd { momentum: 0.5, dampening: 0.25, ..Sgd::default() }.into();
        let table = Table { start: vec![1.0, 1.0], lr: 0.5, ..Table::new(&rule, &[2, 1], 0) };
        let gradients = [Gradient::Rows(vec![1], vec![2.0]), Gradient::Rows(vec![0, 1], vec![4.0, 4.0])];
        let got = table.train(target, &gradients, "got");
        // Row 1: accum 2, then 1 + 3, so 1 − 1 − 2; row 0: accum 3, as it is the second update, so 1 − 1.5.
        assert_eq!(got.arrays()[0].values, [-0.5, -2.0], "the table");
        assert_eq!(got.arrays()[1].values, [3.0, 4.0], "accum");
    }

    /// A list in another order, whose rows stand once each, is the same gradient.
    fn order_of_the_list(target) {
        for rule in sparse_rules() {
            let table = Table::new(&rule, &[40, 5], 1).shaped();
            let values = Random::new(2).tensor(4 * 5);
            let sorted = Gradient::Rows(vec![3, 17, 18, 39], values.clone());
            let rows: Vec<&[f32]> = values.chunks_exact(5).collect();
            let unsorted = Gradient::Rows(vec![18, 39, 3, 17], [rows[2], rows[3], rows[0], rows[1]].concat());
            let [a, b] = [sorted, unsorted].map(|g| vec![g.clone(), g]);
            assert_same(&table, &table.train(target, &a, "sorted"), &table.train(target, &b, "unsorted"));
        }
    }

    /// Rows that stand more than once are summed in the order of the list, then unscaled and decayed once.
    fn duplicates(target) {
        for rule in sparse_rules() {
            let table = Table::new(&rule, &[9, 7], 3).shaped();
            let twice = table.random(&[50, 3, 50], 4);
            let summed: Vec<_> = (twice.iter())
                .map(|gradient| {
                    let Gradient::Rows(indices, _) = gradient else { panic!("rows only") };
                    let dense = gradient.dense(9 * 7);
                    let rows: Vec<u32> = (0..9).filter(|row| indices.contains(row)).collect();
                    let values = rows.iter().flat_map(|&row| dense[row as usize * 7..][..7].to_vec()).collect();
                    Gradient::Rows(rows, values)
                })
                .collect();
            let (a, b) = (table.train(target, &twice, "with duplicates"), table.train(target, &summed, "summed"));
            assert_same(&table, &a, &b);
        }
    }

    /// A list of all rows is a dense gradient, whatever a row's shape.
    fn all_rows(target) {
        for rule in sparse_rules() {
            for shape in [&[6][..], &[6, 1], &[1, 33], &[3, 2, 2, 5], &[2000, 31], &[3, 20_001], &[40_000, 1], &[4, 0], &[0, 3]] {
                let table = Table::new(&rule, shape, 5).shaped();
                let values = Random::new(6).tensor(table.start.len());
                let rows = (0..u32::try_from(shape[0]).unwrap()).collect();
                let sparse = [Gradient::Rows(rows, values.clone()), Gradient::Dense(values.clone())];
                let dense = [Gradient::Dense(values.clone()), Gradient::Dense(values)];
                assert_same(&table, &table.train(target, &sparse, "all rows"), &table.train(target, &dense, "dense"));
            }
        }
    }

    /// Unlisted rows: a gradient of zeros for a rule that updates all, and nothing at all for others. Without decay, which
    /// unlisted rows do not have.
    fn unlisted_rows(target) {
        for rule in sparse_rules() {
            let table = Table { loss_scale: 3.0, ..Table::new(&rule, &[300, 17], 7) };
            let lists = table.random(&[20, 40, 0, 300], 8);
            let dense: Vec<_> = lists.iter().map(|g| Gradient::Dense(g.dense(300 * 17))).collect();
            let sparse = table.train(target, &lists, "rows");
            if rule.spec().sparse() == Sparse::AllRows {
                assert_same(&table, &sparse, &table.train(target, &dense, "dense with zeros"));
                continue;
            }
            let is_listed = |row: u32| {
                lists.iter().any(|list| matches!(list, Gradient::Rows(indices, _) if indices.contains(&row)))
            };
            let untouched = table.train(target, &[], "untouched");
            let mut spared = 0;
            for (array, before) in sparse.arrays().iter().zip(untouched.arrays()) {
                let rows = array.values.chunks_exact(17).zip(before.values.chunks_exact(17));
                for (row, (now, before)) in (0..).zip(rows) {
                    assert!(is_listed(row) || now == before, "{rule:?}: row {row} of {} is not listed", array.name);
                    spared += usize::from(!is_listed(row));
                }
            }
            assert!(spared > 0, "every row was listed");
        }
    }

    /// An empty list: nothing moves, or all rows do as by zeros. The update counts.
    fn empty_list(target) {
        for rule in sparse_rules() {
            let table = Table::new(&rule, &[5, 4], 9).shaped();
            let first = Gradient::Rows(vec![1, 3], Random::new(10).tensor(8));
            let empty = || Gradient::Rows(vec![], vec![]);
            let with = table.train(target, &[first.clone(), empty()], "an empty list");
            let without = table.train(target, std::slice::from_ref(&first), "no update");
            if rule.spec().sparse() == Sparse::ListedRows {
                assert_same(&table, &with, &without);
            } else {
                assert!(compare(&with, &without, &Bound::Bits).is_err(), "{rule:?}: zeros move");
            }
            let (mut optimizer, mut p) = (table.optimizer(target), table.start.clone());
            for step in 1..3 {
                let report = optimizer.step(&mut [(&mut p).into()], &[(&empty()).into()]).unwrap();
                assert_eq!((report.applied(), report.step, optimizer.step_count()), (true, step, step), "{rule:?}");
            }
        }
    }

    /// `LazyAdam` and `Adam` differ in unlisted rows alone, and there they do.
    fn lazy_adam_is_adam_where_rows_are_listed(target) {
        let [adam, lazy] = [Adam::default().into(), LazyAdam::default().into()].map(|rule| Table::new(&rule, &[4, 2], 11));
        let all: Vec<u32> = vec![2, 0, 1, 3];
        let listed = [all.clone(), all].map(|rows| Gradient::Rows(rows, Random::new(12).tensor(8)));
        assert_same(&adam, &adam.train(target, &listed, "Adam"), &lazy.train(target, &listed, "LazyAdam"));
        let some = [listed[0].clone(), Gradient::Rows(vec![2], vec![1.0, 2.0])];
        let differ = compare(&adam.train(target, &some, "Adam"), &lazy.train(target, &some, "LazyAdam"), &Bound::Bits);
        assert!(differ.is_err(), "unlisted rows move with Adam");
    }

    /// A tensor of which a row-sparse gradient names rows, one with a dense gradient and one without any, in one step.
    fn among_others(target) {
        for rule in sparse_rules() {
            let names = ["a", "b", "c"].map(|name| Parameter::new(name, [50, 3]));
            let mut optimizer = Builder::new(rule.clone()).params(&names).build(target).unwrap();
            let table = Table { lr: 0.0, ..Table::new(&rule, &[50, 3], 13) };
            let rows = &table.random(&[20], 14)[0];
            let dense = Gradient::Dense(rows.dense(150));
            let mut p = [table.start.clone(), table.start.clone(), table.start.clone()];
            let mut params: Vec<_> = p.iter_mut().map(Into::into).collect();
            assert!(optimizer.step(&mut params, &[rows.into(), (&dense).into(), Grad::None]).unwrap().applied(), "{rule:?}");
            assert_eq!(p[2], table.start, "{rule:?}: no gradient, no update");
            let Gradient::Rows(indices, _) = rows else { panic!("rows") };
            for row in 0..50 {
                // Summed the same way, so a listed row moves as by a dense gradient.
                if indices.contains(&row) {
                    let at = row as usize * 3..row as usize * 3 + 3;
                    assert_eq!(p[0][at.clone()], p[1][at], "{rule:?}: row {row}");
                }
            }
        }
    }

    /// Every refusal, with nothing changed, and the next step as if it had not been tried.
    fn refusals(target) {
        for rule in sparse_rules() {
            let table = Table::new(&rule, &[4, 3], 15).shaped();
            let good = Gradient::Rows(vec![2, 0], Random::new(16).tensor(6));
            let (five, six, half) = ([1.0_f32; 5], [1.0_f32; 6], [f16::ONE; 5]);
            let length = |rows, expected, got| Error::RowLength { name: "table".into(), rows, expected, got };
            let index = |index| Error::RowIndex { name: "table".into(), index, rows: 4 };
            let refused: [(Grad<'_>, Error); 6] = [
                (Grad::rows(&[0, 4], &six), index(4)),
                (Grad::rows(&[u32::MAX, 0], &six), index(u32::MAX)),
                (Grad::rows(&[0, 3], &five), length(2, 6, 5)),
                (Grad::rows(&[0, 3], &[] as &[f32]), length(2, 6, 0)),
                (Grad::rows(&[], &six), length(0, 0, 6)),
                (Grad::rows(&[0, 3], &half), length(2, 6, 5)),
            ];
            let undisturbed = table.train(target, &[good.clone(), good.clone()], "undisturbed");
            let (mut optimizer, mut p) = (table.optimizer(target), table.start.clone());
            assert!(optimizer.step(&mut [(&mut p).into()], &[(&good).into()]).unwrap().applied(), "a good step");
            let before = Run::of(&optimizer, std::slice::from_ref(&p)).unwrap().by("before");
            for (grad, expected) in refused {
                let error = optimizer.step(&mut [(&mut p).into()], &[grad]).expect_err("a refused gradient");
                assert_eq!(error, expected, "{rule:?}");
                assert!(error.to_string().contains("\"table\""), "{error}");
                let after = Run::of(&optimizer, std::slice::from_ref(&p)).unwrap().by("after");
                assert_same(&table, &before, &after);
                assert_eq!(optimizer.step_count(), 1, "{error}");
            }
            assert!(optimizer.step(&mut [(&mut p).into()], &[(&good).into()]).unwrap().applied(), "a good step");
            assert_same(&table, &undisturbed, &Run::of(&optimizer, &[p]).unwrap().by("after refusals"));
        }
    }

    /// With 8-bit state, before anything is changed: not even the masters and averages of others, which the first step sets.
    fn with_state_in_8_bits(target) {
        let small = Parameter::new("small", [3]).with_dtype(DType::Bf16);
        let builder = Momentum::new(0.1, 0.9).params([small, Parameter::new("table", [4, 3])]);
        let builder = builder.state_dtype(StateDType::Block8).master(Master::F32).ema(0.5);
        let mut optimizer = builder.build(target).unwrap();
        let (mut small, mut table) = ([bf16::ONE; 3], [2.0_f32; 12]);
        let bytes = |optimizer: &mut Optimizer| {
            let mut bytes = Vec::new();
            let written = checkpoint::write(&optimizer.state().unwrap(), &mut bytes).unwrap();
            assert!(written > 0);
            bytes
        };
        let before = bytes(&mut optimizer);
        let grads = [(&[0.5_f32; 3]).into(), Grad::rows(&[1], &[1.0_f32; 3])];
        let error = unsupported(optimizer.step(&mut [(&mut small).into(), (&mut table).into()], &grads).map(drop));
        assert!(error.contains("\"table\"") && error.contains("8-bit state"), "{error}");
        assert!(bytes(&mut optimizer) == before, "something has changed");
    }

    /// A scalar has no rows.
    fn scalars(target) {
        for rule in sparse_rules() {
            let builder = Builder::new(rule.clone()).params([Parameter::new("temperature", [0_usize; 0])]);
            let (mut optimizer, mut p) = (builder.build(target).unwrap(), [2.0_f32]);
            let error = unsupported(optimizer.step(&mut [(&mut p).into()], &[Grad::rows(&[0], &[1.0_f32])]).map(drop));
            assert!(error.contains("\"temperature\""), "{rule:?}: {error}");
            assert_eq!((p, optimizer.step_count()), ([2.0], 0), "{rule:?}");
        }
    }

    /// Rules that take no row-sparse gradients say so, and take dense ones afterwards.
    fn other_rules(target) {
        let mut others = Rule::all();
        others.retain(|rule| rule.spec().sparse() == Sparse::Unsupported);
        assert!(!others.is_empty(), "some rules take dense gradients only");
        for rule in others {
            let table = Table::new(&rule, &[4, 3], 17);
            let (mut optimizer, mut p) = (table.optimizer(target), table.start.clone());
            let rows = Gradient::Rows(vec![1], vec![1.0; 3]);
            let error = optimizer.step(&mut [(&mut p).into()], &[(&rows).into()]).unwrap_err();
            assert_eq!(error, Error::RowSparse { name: "table".into(), rule: rule.spec().name() });
            assert_eq!((&p, optimizer.step_count()), (&table.start, 0), "{rule:?}");
            let dense = Gradient::Dense(vec![1.0; 12]);
            assert!(optimizer.step(&mut [(&mut p).into()], &[(&dense).into()]).unwrap().applied(), "{rule:?}");
        }
    }
}

/// The message of an [`Error::Unsupported`].
#[track_caller]
fn unsupported(result: Result<()>) -> String {
    match result {
        Err(error @ Error::Unsupported { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Control: the naive loop notices a row that is left out, and the laws notice another rate.
#[test]
fn differences_are_noticed() {
    let table = Table::new(&Momentum::new(0.1, 0.9).into(), &[13, 3], 18);
    let gradients = table.random(&[13, 8], 19);
    let mut fewer = gradients.clone();
    let Gradient::Rows(indices, values) = &mut fewer[1] else { panic!("rows") };
    indices.pop();
    values.truncate(values.len() - 3);
    let names = |run: Vec<(String, Vec<f64>)>| run.into_iter().map(|(_, values)| values).collect::<Vec<_>>();
    assert_ne!(names(naive(&table, &gradients)), names(naive(&table, &fewer)), "another list");
    let other = Table { lr: table.lr * 1.001, ..table.clone() };
    let (a, b) = (table.train(Target::ALL[0], &gradients, "a"), other.train(Target::ALL[0], &gradients, "b"));
    assert!(compare(&a, &b, &Bound::Bits).is_err(), "another rate");
}

/// The same bits for any number of threads, with tasks that begin and end inside rows and between them.
#[test]
#[cfg(feature = "cpu")]
fn same_for_any_number_of_threads() {
    let threads = |n| optimizers::CpuBackend::with_threads(n).unwrap();
    for rule in sparse_rules() {
        for shape in [&[9_000, 17][..], &[3, 40_001], &[120_000, 1]] {
            let table = Table::new(&rule, shape, 21).shaped();
            let gradients = table.random(&[shape[0] / 2, 1, shape[0] * 2], 22);
            let one = table.train(threads(1), &gradients, "1 thread");
            assert_same(&table, &one, &table.train(threads(2), &gradients, "2 threads"));
            assert_same(&table, &one, &table.train(threads(5), &gradients, "5 threads"));
        }
    }
}
