//! Rows that come, go and move: a table goes on as if each of its rows had always been a parameter of its own.

use half::bf16;
use optim_tests::{Random, on_every_backend};
use optimizers::{
    AdaFactor, Adagrad, Adam, Builder, DType, Error, Grad, Momentum, Optimizer, ParamMut, Parameter, Rule, StateDType,
};

const WIDTH: usize = 5;

/// What the rows become: pruned, moved, new, doubled.
const ROWS: [Option<u32>; 4] = [Some(2), None, Some(0), Some(2)];

fn rules() -> [Rule; 3] {
    [Adam::new(1e-2).into(), Momentum::new(0.1, 0.9).into(), Adagrad { epsilon: 1e-6, ..Adagrad::new(0.1) }.into()]
}

/// A table of three rows, and another parameter.
fn table(rule: &Rule, dtype: DType) -> Builder {
    let table = Parameter::new("table", [3, WIDTH]).with_dtype(dtype);
    Builder::new(rule.clone()).params([table, Parameter::new("bias", [7])])
}

fn step(optimizer: &mut Optimizer, params: &mut [Vec<f32>], grads: &[Option<Vec<f32>>]) {
    let mut params: Vec<ParamMut<'_>> = params.iter_mut().map(Into::into).collect();
    let grads: Vec<Grad<'_>> = grads.iter().map(|g| g.as_ref().into()).collect();
    assert!(optimizer.step(&mut params, &grads).unwrap().applied(), "a step is applied");
}

/// The rows of a matrix as they become; new ones are from `new`.
fn moved(matrix: &[f32], new: &[f32]) -> Vec<f32> {
    let row = |row: &Option<u32>| row.map_or(new, |row| &matrix[row as usize * WIDTH..][..WIDTH]).to_vec();
    ROWS.iter().flat_map(row).collect()
}

on_every_backend! {
    fn as_parameters_of_their_own(target) {
        for rule in rules() {
            let mut random = Random::new(1);
            let mut optimizer = table(&rule, DType::F32).build(target).unwrap();
            let mut params = vec![random.tensor(3 * WIDTH), random.tensor(7)];
            let new = random.tensor(WIDTH);

            // The same rows, as they will be, each by itself.
            let names = (0..4).map(|row| Parameter::new(format!("row{row}"), [WIDTH])).chain([Parameter::new("bias", [7])]);
            let mut single = Builder::new(rule.clone()).params(names).build(target).unwrap();
            let mut singles: Vec<Vec<f32>> = moved(&params[0], &new).chunks(WIDTH).map(<[f32]>::to_vec).collect();
            singles.push(params[1].clone());

            for _ in 0..4 {
                let (table, bias) = (random.tensor(3 * WIDTH), random.tensor(7));
                let by_row = ROWS.iter().map(|row| row.map(|row| table[row as usize * WIDTH..][..WIDTH].to_vec()));
                let by_row: Vec<_> = by_row.chain([Some(bias.clone())]).collect();
                step(&mut optimizer, &mut params, &[Some(table), Some(bias)]);
                step(&mut single, &mut singles, &by_row);
            }
            optimizer.rearrange_rows("table", &ROWS, &[]).unwrap();
            assert_eq!(optimizer.parameters()[0].shape(), [4, WIDTH]);
            params[0] = moved(&params[0], &new);

            for _ in 0..3 {
                let (table, bias) = (random.tensor(4 * WIDTH), random.tensor(7));
                let by_row = table.chunks(WIDTH).map(|row| Some(row.to_vec())).chain([Some(bias.clone())]).collect::<Vec<_>>();
                step(&mut optimizer, &mut params, &[Some(table), Some(bias)]);
                step(&mut single, &mut singles, &by_row);
            }
            assert_eq!(params[0], singles[..4].concat(), "{rule:?}");
            assert_eq!(params[1], singles[4], "{rule:?}: the other parameter");
            for slot in rule.spec().slots() {
                let rows: Vec<f32> = (0..4).flat_map(|row| single.slot(&format!("row{row}"), slot.name).unwrap()).collect();
                assert_eq!(optimizer.slot("table", slot.name).unwrap(), rows, "{rule:?}: {}", slot.name);
            }
        }
    }

    fn masters_move_along(target) {
        let mut random = Random::new(2);
        let mut optimizer = table(&Adam::new(1e-3).into(), DType::Bf16).build(target).unwrap();
        let round = |values: &[f32]| values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
        let (mut table, mut bias) = (round(&random.tensor(3 * WIDTH)), random.tensor(7));
        for _ in 0..3 {
            let (g, h) = (random.tensor(3 * WIDTH), random.tensor(7));
            let report = optimizer.step(&mut [(&mut table).into(), (&mut bias).into()], &[(&g).into(), (&h).into()]);
            assert!(report.unwrap().applied(), "a step is applied");
        }
        // A master is asked for the values of new rows.
        let error = optimizer.rearrange_rows("table", &ROWS, &[]).unwrap_err();
        assert!(matches!(&error, Error::Length { expected: WIDTH, got: 0, .. }), "{error}");
        assert!(error.to_string().contains("masters and averages begin with them"), "{error}");

        // With a gradient of 0 and moments of 0 nothing moves: rows are then what their masters say.
        let new = [0.25_f32; WIDTH];
        let mut kept = table.clone();
        optimizer.rearrange_rows("table", &[None, Some(1)], &new).unwrap();
        kept.drain(..WIDTH);
        kept.truncate(WIDTH);
        let mut table = [round(&new), kept].concat();
        let zeros = vec![0.0_f32; 2 * WIDTH];
        let report = optimizer.step(&mut [(&mut table).into(), (&mut bias).into()], &[(&zeros).into(), Grad::None]);
        assert!(report.unwrap().applied(), "a step is applied");
        assert_eq!(table[..WIDTH], round(&new)[..], "a new row has begun with what it was given");
    }

    fn slots_in_8_bits_are_near(target) {
        let mut random = Random::new(3);
        let rule = Rule::from(Adam::new(1e-2));
        let mut optimizer = table(&rule, DType::F32).state_dtype(StateDType::Block8).build(target).unwrap();
        let mut params = vec![random.tensor(3 * WIDTH), random.tensor(7)];
        for _ in 0..3 {
            let grads = [Some(random.tensor(3 * WIDTH)), Some(random.tensor(7))];
            step(&mut optimizer, &mut params, &grads);
        }
        let before = ["moment1", "moment2"].map(|slot| optimizer.slot("table", slot).unwrap());
        optimizer.rearrange_rows("table", &ROWS, &[]).unwrap();
        for (slot, before) in ["moment1", "moment2"].into_iter().zip(before) {
            let after = optimizer.slot("table", slot).unwrap();
            let scale = before.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            for (x, y) in moved(&before, &[0.0; WIDTH]).iter().zip(&after) {
                // Half the distance of two codes: a sixteenth of z = 2 + y, where y of the scale is 494 at least.
                let distance = (x.abs() + scale / 247.0) / 16.0;
                assert!((x - y).abs() <= 0.501 * distance, "{slot}: {x} became {y}, the scale is {scale}");
            }
        }
    }

    fn factored_state_moves_by_row(target) {
        let mut optimizer = table(&AdaFactor::with_lr(0.01).into(), DType::F32).build(target).unwrap();
        let mut random = Random::new(4);
        let mut params = vec![random.tensor(3 * WIDTH), random.tensor(7)];
        step(&mut optimizer, &mut params, &[Some(random.tensor(3 * WIDTH)), Some(random.tensor(7))]);
        let slot = |optimizer: &Optimizer, name: &str| optimizer.slot("table", name).unwrap();
        let (rows, columns) = (slot(&optimizer, "exp_avg_sq_row"), slot(&optimizer, "exp_avg_sq_col"));
        optimizer.rearrange_rows("table", &ROWS, &[]).unwrap();
        assert_eq!(slot(&optimizer, "exp_avg_sq_row"), [rows[2], 0.0, rows[0], rows[2]]);
        assert_eq!(slot(&optimizer, "exp_avg_sq_col"), columns);
    }

    fn resized_and_pruned(target) {
        let mut random = Random::new(5);
        let mut optimizer = table(&Momentum::new(0.1, 0.9).into(), DType::F32).build(target).unwrap();
        let mut params = vec![random.tensor(3 * WIDTH), random.tensor(7)];
        step(&mut optimizer, &mut params, &[Some(random.tensor(3 * WIDTH)), None]);
        let before = optimizer.slot("table", "moments").unwrap();
        optimizer.resize_rows("table", 5, &[]).unwrap();
        assert_eq!(optimizer.slot("table", "moments").unwrap(), [before.clone(), vec![0.0; 2 * WIDTH]].concat());
        optimizer.prune_rows("table", |row| row % 2 == 1).unwrap();
        assert_eq!(optimizer.slot("table", "moments").unwrap(), [&before[WIDTH..2 * WIDTH], &[0.0; WIDTH]].concat());
        assert_eq!(optimizer.parameters()[0].shape(), [2, WIDTH]);
    }

    fn refused(target) {
        let mut optimizer = Adam::default()
            .params([Parameter::new("table", [3, WIDTH]), Parameter::new("scalar", [])])
            .build(target)
            .unwrap();
        let mut refuse = |name: &str, rows: &[Option<u32>], new: &[f32]| optimizer.rearrange_rows(name, rows, new).unwrap_err();
        assert!(matches!(refuse("tables", &[], &[]), Error::Unknown { .. }), "an unknown name");
        assert!(matches!(refuse("scalar", &[], &[]), Error::Unsupported { .. }), "a scalar");
        assert!(matches!(refuse("table", &[Some(3)], &[]), Error::RowIndex { index: 3, rows: 3, .. }), "a row too far");
        assert!(matches!(refuse("table", &[None], &[0.0; 3]), Error::Length { expected: WIDTH, got: 3, .. }), "too few values");
    }
}
