//! `OPTIM_TEST_GPU=skip` turns the tests that need a GPU into ignored ones, with the reason shown. Without it a machine that
//! has no adapter fails them: nothing is skipped in silence.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(skip_gpu)");
    println!("cargo::rerun-if-env-changed=OPTIM_TEST_GPU");
    if std::env::var("OPTIM_TEST_GPU").is_ok_and(|value| value == "skip") {
        println!("cargo::rustc-cfg=skip_gpu");
    }
}
