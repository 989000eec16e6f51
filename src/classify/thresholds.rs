//! `thresholds.toml` of a model folder: above which probability a label counts, by how many benign texts may
//! be taken for bad ones.

use super::FolderError;
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path};

/// Scores of the first stage that say too little, and go to the second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Band {
    /// From here.
    pub low: f32,
    /// To here.
    pub high: f32,
}

/// The probabilities from which a label counts, by how many benign texts may be taken for bad.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Bars {
    /// One in a hundred.
    #[serde(
        alias = "combined_fpr_1_percent",
        alias = "strict_fpr_1_percent",
        rename = "fpr_1_percent"
    )]
    pub usual: f32,
    /// One in a thousand.
    #[serde(
        alias = "combined_fpr_01_percent",
        alias = "strict_fpr_01_percent",
        rename = "fpr_01_percent"
    )]
    pub sure: f32,
}

/// Above which probability a label counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Thresholds {
    /// The model's version, for records.
    pub version: String,
    /// By label.
    pub labels: BTreeMap<String, Bars>,
    /// Of both stages together, where the second sees what is in the band.
    pub combined: Option<Bars>,
    /// Of both stages together, where the second sees every text.
    pub strict: Option<Bars>,
    /// What goes to the second stage.
    pub band: Option<Band>,
    /// How much the second stage's word counts beside the first's, 0 to 1.
    pub weight: f32,
}

#[derive(Deserialize)]
struct Grey {
    grey_low: f32,
    grey_high: f32,
}

#[derive(Deserialize)]
struct Combined {
    b_weight: f32,
    #[serde(flatten)]
    bars: Bars,
}

impl Thresholds {
    /// Reads a folder's file. A folder without one has none.
    ///
    /// # Errors
    /// The file says something that is no probability.
    pub fn read(folder: &Path, labels: &[String]) -> Result<Self, FolderError> {
        let path = folder.join("thresholds.toml");
        if !path.exists() {
            return Ok(Self { weight: 1.0, ..Self::default() });
        }
        let text =
            std::fs::read_to_string(&path).map_err(|error| FolderError::file(&path, error))?;
        let read = Self::parse(&text, labels).map_err(|what| FolderError::file(&path, what))?;
        let bars = read.labels.values().chain(&read.combined).chain(&read.strict);
        let numbers = bars.flat_map(|bars| [bars.usual, bars.sure]).chain([read.weight]);
        let numbers = numbers.chain(read.band.iter().flat_map(|band| [band.low, band.high]));
        match numbers.into_iter().find(|number| !(0.0..=1.0).contains(number)) {
            Some(odd) => Err(FolderError::file(&path, format!("{odd} is no probability"))),
            None => Ok(read),
        }
    }

    fn parse(text: &str, labels: &[String]) -> Result<Self, String> {
        let file: toml::Table = toml::from_str(text).map_err(|error| error.to_string())?;
        let version = file.get("version").map(|version| version.to_string());
        let mut read = Self {
            version: version.unwrap_or_default().trim_matches('"').to_owned(),
            band: part::<Grey>(&file, "grey")?
                .map(|grey| Band { low: grey.grey_low, high: grey.grey_high }),
            strict: part(&file, "strict")?,
            weight: 1.0,
            ..Self::default()
        };
        if let Some(combined) = part::<Combined>(&file, "combined")? {
            read.weight = combined.b_weight;
            read.combined = Some(combined.bars);
        }
        for label in labels {
            if let Some(bars) = part(&file, label)? {
                read.labels.insert(label.clone(), bars);
            }
        }
        Ok(read)
    }
}

/// One table of the file.
fn part<T: serde::de::DeserializeOwned>(
    file: &toml::Table,
    name: &str,
) -> Result<Option<T>, String> {
    let Some(table) = file.get(name) else { return Ok(None) };
    let read = table.clone().try_into().map_err(|error| format!("[{name}]: {error}"));
    read.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_read_and_odd_numbers_are_refused() {
        let text = "version = \"3\"\n[injection]\nfpr_1_percent = 0.5\nfpr_01_percent = 0.9\n\
            [grey]\ngrey_low = 0.1\ngrey_high = 1.0\nshare = 0.1\n\
            [combined]\nformula = \"x\"\nb_weight = 0.7\ncombined_fpr_1_percent = 0.6\ncombined_fpr_01_percent = 0.8\n\
            [strict]\nstrict_fpr_1_percent = 0.4\nstrict_fpr_01_percent = 0.7\n";
        let folder = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            std::fs::write(folder.path().join("thresholds.toml"), text).unwrap();
            Thresholds::read(folder.path(), &["injection".to_owned()])
        };
        let all = read(text).unwrap();
        assert_eq!(all.labels["injection"], Bars { usual: 0.5, sure: 0.9 });
        assert_eq!(all.combined, Some(Bars { usual: 0.6, sure: 0.8 }));
        assert_eq!(all.strict, Some(Bars { usual: 0.4, sure: 0.7 }));
        assert_eq!((all.band, all.weight), (Some(Band { low: 0.1, high: 1.0 }), 0.7));
        assert_eq!(all.version, "3");
        assert!(read(&text.replace("0.9", "1.9")).unwrap_err().0.contains("1.9 is no probability"));
        assert!(read("[injection]\nfpr_1_percent = 0.5").unwrap_err().0.contains("[injection]"));
    }
}
