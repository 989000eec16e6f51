//! Who wrote a text, and what a rule asks to be done about one.

use std::{fmt, str::FromStr};

/// No such word. Holds the one that was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is none of {allowed}")]
pub struct UnknownWord {
    /// The word that was given.
    pub given: String,
    /// Those that would do.
    pub allowed: &'static str,
}

/// Who wrote a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// The application, in its instructions to the model.
    System,
    /// The person that the model talks with.
    User,
    /// The model.
    Assistant,
    /// A tool, a web page, a document: what nobody in the conversation wrote.
    Tool,
}

impl Origin {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::System, Self::User, Self::Assistant, Self::Tool];

    /// The origin's name in rule files and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Origin {
    type Err = UnknownWord;

    fn from_str(name: &str) -> Result<Self, UnknownWord> {
        let found = Self::ALL.into_iter().find(|origin| origin.as_str() == name);
        let allowed = "`system`, `user`, `assistant`, `tool`";
        found.ok_or_else(|| UnknownWord { given: name.to_owned(), allowed })
    }
}

/// A set of origins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origins(u8);

impl Origins {
    /// Every origin.
    pub const ALL: Self = Self(0b1111);

    /// Is the origin among them?
    pub fn has(self, origin: Origin) -> bool {
        self.0 & (1 << origin as u8) != 0
    }

    /// Those in it, in order.
    pub fn iter(self) -> impl Iterator<Item = Origin> {
        Origin::ALL.into_iter().filter(move |origin| self.has(*origin))
    }
}

impl FromIterator<Origin> for Origins {
    fn from_iter<I: IntoIterator<Item = Origin>>(origins: I) -> Self {
        Self(origins.into_iter().fold(0, |bits, origin| bits | (1 << origin as u8)))
    }
}

/// What a rule asks for. What is done in the end is up to the policy that uses the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Tell about it and let it pass.
    Flag,
    /// Take the text that matched out of it.
    Sanitise,
    /// Refuse the whole.
    Refuse,
}

impl Action {
    /// All of them, the mildest first.
    pub const ALL: [Self; 3] = [Self::Flag, Self::Sanitise, Self::Refuse];

    /// The action's name in rule files and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::Sanitise => "sanitise",
            Self::Refuse => "refuse",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Action {
    type Err = UnknownWord;

    fn from_str(name: &str) -> Result<Self, UnknownWord> {
        let found = Self::ALL.into_iter().find(|action| action.as_str() == name);
        let allowed = "`flag`, `sanitise`, `refuse`";
        found.ok_or_else(|| UnknownWord { given: name.to_owned(), allowed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_and_others_are_refused() {
        for origin in Origin::ALL {
            assert_eq!(origin.as_str().parse(), Ok(origin));
        }
        for action in Action::ALL {
            assert_eq!(action.as_str().parse(), Ok(action));
        }
        let unknown = "User".parse::<Origin>().unwrap_err();
        assert!(unknown.to_string().starts_with("`User` is none of"), "{unknown}");
        assert!("sanitize".parse::<Action>().is_err());
    }

    #[test]
    fn a_set_has_what_was_put_in() {
        let set: Origins = [Origin::Tool, Origin::User].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [Origin::User, Origin::Tool]);
        assert!(!set.has(Origin::System));
        assert_eq!(Origin::ALL.into_iter().collect::<Origins>(), Origins::ALL);
    }
}
