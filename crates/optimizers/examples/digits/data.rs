//! The data set: 1,797 images of 8 × 8 pixels (see `../data/README.md`).

use std::error::Error;

use flate2::read::GzDecoder;

use crate::random::Random;

pub(crate) const PIXELS: usize = 64;
pub(crate) const DIGITS: usize = 10;

const FILE: &[u8] = include_bytes!("../data/digits.csv.gz");

pub(crate) struct Image {
    /// Ink from 0 to 1, row by row.
    pub(crate) pixels: [f32; PIXELS],
    pub(crate) digit: usize,
}

pub(crate) struct Digits {
    pub(crate) train: Vec<Image>,
    pub(crate) test: Vec<Image>,
}

impl Digits {
    /// The images in random order, four fifths of them to train with.
    pub(crate) fn load(random: &mut Random) -> Result<Self, Box<dyn Error>> {
        let mut train = read()?;
        random.shuffle(&mut train);
        let test = train.split_off(train.len() * 4 / 5);
        Ok(Self { train, test })
    }
}

fn read() -> Result<Vec<Image>, Box<dyn Error>> {
    let mut rows = csv::ReaderBuilder::new().has_headers(false).from_reader(GzDecoder::new(FILE));
    rows.deserialize::<Vec<u8>>().map(|row| image(&row?)).collect()
}

/// A row is 64 pixels from 0 to 16, then the digit.
fn image(row: &[u8]) -> Result<Image, Box<dyn Error>> {
    let (&digit, pixels) = row.split_last().ok_or("an empty row")?;
    let pixels: [u8; PIXELS] = pixels.try_into()?;
    let digit = Some(digit.into()).filter(|&digit| digit < DIGITS).ok_or("the last column is not a digit")?;
    Ok(Image { pixels: pixels.map(|ink| f32::from(ink) / 16.0), digit })
}
