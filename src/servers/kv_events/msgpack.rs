//! Reads msgpack where it lies: nothing is copied and nothing is allocated, however long a list claims to be.
//!
//! Must not know what the values mean.

/// What is wrong with bytes that should be msgpack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// They end in the middle of a value.
    #[error("it ends in the middle of a value")]
    Short,
    /// A byte that begins no value.
    #[error("it has a byte that begins no value")]
    Byte,
    /// A value of another kind than the place wants.
    #[error("it is no batch of events")]
    Kind,
}

/// One value, whole. Numbers keep their sign; what nobody here reads is only named.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    /// Nothing.
    Nil,
    /// Yes or no.
    Flag(bool),
    /// A whole number from zero on.
    Unsigned(u64),
    /// A whole number below zero.
    Negative(i64),
    /// A number with a fraction.
    Float,
    /// Text, which may not be UTF-8.
    Text(&'a [u8]),
    /// Bytes.
    Bytes(&'a [u8]),
    /// A list.
    List(Items<'a>),
    /// A map, which was passed over.
    Map,
    /// A value of a type of the sender's own.
    Own,
}

/// What begins at a place: a value that is complete, or the number of those that follow.
enum Head<'a> {
    Whole(Value<'a>),
    List(u32),
    Map(u32),
}

/// The values of a list, which are known to be well-formed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Items<'a> {
    left: u32,
    reader: Reader<'a>,
}

impl Items<'_> {
    /// How many are left.
    pub(super) const fn left(&self) -> u32 {
        self.left
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        self.reader.value().ok()
    }
}

/// Bytes, from the place on that is read next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// One value with all that is in it.
    pub(super) fn value(&mut self) -> Result<Value<'a>, Malformed> {
        match self.head()? {
            Head::Whole(value) => Ok(value),
            Head::List(count) => {
                let reader = *self;
                self.skip(count.into())?;
                Ok(Value::List(Items { left: count, reader }))
            }
            Head::Map(count) => {
                self.skip(u64::from(count) * 2)?;
                Ok(Value::Map)
            }
        }
    }

    /// Enters a list or a map: what is in it is read next.
    pub(super) fn enter(&mut self) -> Result<Entered, Malformed> {
        match self.head()? {
            Head::List(count) => Ok(Entered::List(count)),
            Head::Map(count) => Ok(Entered::Map(count)),
            Head::Whole(_) => Err(Malformed::Kind),
        }
    }

    /// Passes over values, with all that is in them. Each takes a byte at least, so this ends with the bytes.
    pub(super) fn skip(&mut self, values: u64) -> Result<(), Malformed> {
        let mut left = values;
        while left > 0 {
            left -= 1;
            left = left.saturating_add(match self.head()? {
                Head::Whole(_) => 0,
                Head::List(count) => u64::from(count),
                Head::Map(count) => u64::from(count) * 2,
            });
        }
        Ok(())
    }

    fn head(&mut self) -> Result<Head<'a>, Malformed> {
        let [first] = self.array()?;
        Ok(Head::Whole(match first {
            0x00..=0x7f => Value::Unsigned(first.into()),
            0x80..=0x8f => return Ok(Head::Map((first & 0x0f).into())),
            0x90..=0x9f => return Ok(Head::List((first & 0x0f).into())),
            0xa0..=0xbf => Value::Text(self.take((first & 0x1f).into())?),
            0xc0 => Value::Nil,
            0xc1 => return Err(Malformed::Byte),
            0xc2 | 0xc3 => Value::Flag(first == 0xc3),
            0xc4..=0xc6 => Value::Bytes(self.sized(first - 0xc4)?),
            0xc7..=0xc9 => {
                let size = self.size(first - 0xc7)?;
                self.own(size)?
            }
            0xca => self.array::<4>().map(|_| Value::Float)?,
            0xcb => self.array::<8>().map(|_| Value::Float)?,
            0xcc => Value::Unsigned(u8::from_be_bytes(self.array()?).into()),
            0xcd => Value::Unsigned(u16::from_be_bytes(self.array()?).into()),
            0xce => Value::Unsigned(u32::from_be_bytes(self.array()?).into()),
            0xcf => Value::Unsigned(u64::from_be_bytes(self.array()?)),
            0xd0 => signed(i8::from_be_bytes(self.array()?).into()),
            0xd1 => signed(i16::from_be_bytes(self.array()?).into()),
            0xd2 => signed(i32::from_be_bytes(self.array()?).into()),
            0xd3 => signed(i64::from_be_bytes(self.array()?)),
            0xd4..=0xd8 => self.own(1 << (first - 0xd4))?,
            0xd9..=0xdb => Value::Text(self.sized(first - 0xd9)?),
            0xdc | 0xdd => return Ok(Head::List(self.size(first - 0xdc + 1)?)),
            0xde | 0xdf => return Ok(Head::Map(self.size(first - 0xde + 1)?)),
            0xe0..=0xff => signed(i8::from_be_bytes([first]).into()),
        }))
    }

    /// One byte of type stands in front of the value.
    fn own(&mut self, size: u32) -> Result<Value<'a>, Malformed> {
        let [_type] = self.array()?;
        self.take(size).map(|_| Value::Own)
    }

    fn sized(&mut self, width: u8) -> Result<&'a [u8], Malformed> {
        let size = self.size(width)?;
        self.take(size)
    }

    /// A size in 1, 2 or 4 bytes, for a width of 0, 1 or 2.
    fn size(&mut self, width: u8) -> Result<u32, Malformed> {
        Ok(match width {
            0 => u8::from_be_bytes(self.array()?).into(),
            1 => u16::from_be_bytes(self.array()?).into(),
            _ => u32::from_be_bytes(self.array()?),
        })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn take(&mut self, size: u32) -> Result<&'a [u8], Malformed> {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let (taken, rest) = self.rest.split_at_checked(size).ok_or(Malformed::Short)?;
        self.rest = rest;
        Ok(taken)
    }
}

/// What was entered, and how much is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// That many values.
    List(u32),
    /// That many pairs of values.
    Map(u32),
}

fn signed(number: i64) -> Value<'static> {
    u64::try_from(number).map_or(Value::Negative(number), Value::Unsigned)
}

/// Writes what tests want to read.
#[cfg(test)]
pub(super) mod write {
    pub(crate) fn list(items: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0xdd];
        bytes.extend((items.len() as u32).to_be_bytes());
        bytes.extend(items.concat());
        bytes
    }

    pub(crate) fn map(pairs: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = vec![0xde];
        bytes.extend((pairs.len() as u16).to_be_bytes());
        for (key, value) in pairs {
            bytes.extend(text(key));
            bytes.extend(value);
        }
        bytes
    }

    pub(crate) fn text(text: &str) -> Vec<u8> {
        let mut bytes = vec![0xd9, text.len() as u8];
        bytes.extend(text.as_bytes());
        bytes
    }

    pub(crate) fn bytes(of: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xc4, of.len() as u8];
        bytes.extend(of);
        bytes
    }

    pub(crate) fn unsigned(number: u64) -> Vec<u8> {
        let mut bytes = vec![0xcf];
        bytes.extend(number.to_be_bytes());
        bytes
    }

    pub(crate) fn signed(number: i64) -> Vec<u8> {
        let mut bytes = vec![0xd3];
        bytes.extend(number.to_be_bytes());
        bytes
    }

    pub(crate) fn nil() -> Vec<u8> {
        vec![0xc0]
    }

    pub(crate) fn unsigneds(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
        list(&numbers.into_iter().map(unsigned).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Result<Value<'_>, Malformed> {
        Reader::new(bytes).value()
    }

    /// Each format of the specification, as its table has them.
    #[test]
    fn every_format_is_read() {
        for (bytes, expected) in [
            (&[0x7f][..], Value::Unsigned(127)),
            (&[0xff], Value::Negative(-1)),
            (&[0xe0], Value::Negative(-32)),
            (&[0xcc, 200], Value::Unsigned(200)),
            (&[0xcd, 1, 0], Value::Unsigned(256)),
            (&[0xce, 0, 1, 0, 0], Value::Unsigned(65_536)),
            (&[0xcf, 255, 255, 255, 255, 255, 255, 255, 255], Value::Unsigned(u64::MAX)),
            (&[0xd0, 0x80], Value::Negative(-128)),
            (&[0xd1, 0xff, 0], Value::Negative(-256)),
            (&[0xd2, 0, 0, 0, 5], Value::Unsigned(5)),
            (&[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0], Value::Negative(i64::MIN)),
            (&[0xc0], Value::Nil),
            (&[0xc3], Value::Flag(true)),
            (&[0xca, 0, 0, 0, 0], Value::Float),
            (&[0xcb, 0, 0, 0, 0, 0, 0, 0, 0], Value::Float),
            (b"\xa2ab", Value::Text(b"ab")),
            (b"\xd9\x02ab", Value::Text(b"ab")),
            (b"\xda\x00\x02ab", Value::Text(b"ab")),
            (b"\xdb\x00\x00\x00\x02ab", Value::Text(b"ab")),
            (b"\xc4\x01a", Value::Bytes(b"a")),
            (b"\xc5\x00\x01a", Value::Bytes(b"a")),
            (b"\xc6\x00\x00\x00\x01a", Value::Bytes(b"a")),
            (b"\xd4\x05a", Value::Own),
            (b"\xd8\x050123456789abcdef", Value::Own),
            (b"\xc7\x02\x05ab", Value::Own),
            (b"\x81\xa1a\x92\x01\x02", Value::Map),
            (b"\xdf\x00\x00\x00\x01\x01\x02", Value::Map),
        ] {
            assert_eq!(read(bytes), Ok(expected), "{bytes:x?}");
            let mut reader = Reader::new(bytes);
            reader.value().unwrap();
            assert_eq!(reader.rest, b"", "{bytes:x?} is read to its end");
            for cut in 0..bytes.len() {
                assert_eq!(read(&bytes[..cut]), Err(Malformed::Short), "{bytes:x?} cut at {cut}");
            }
        }
        assert_eq!(read(&[0xc1]), Err(Malformed::Byte));
    }

    #[test]
    fn a_list_gives_its_values_one_by_one() {
        let Ok(Value::List(items)) = read(&[0x94, 1, 0x92, 0xc0, 0x90, 0x81, 1, 2, 0xff]) else {
            panic!("a list");
        };
        assert_eq!(items.left(), 4);
        let values: Vec<Value<'_>> = items.collect();
        assert!(matches!(
            values[..],
            [Value::Unsigned(1), Value::List(_), Value::Map, Value::Negative(-1)]
        ));
    }

    /// Lists in lists would be calls in calls, and a claim of four thousand million values an allocation.
    #[test]
    fn depth_and_claims_cost_nothing() {
        assert_eq!(read(&vec![0x91; 1 << 20]), Err(Malformed::Short));
        assert_eq!(
            read(&[0xdd, 255, 255, 255, 255, 0xdf, 255, 255, 255, 255]),
            Err(Malformed::Short)
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Value::List(items)) = read(&bytes) {
                prop_assert_eq!(items.left() as usize, items.collect::<Vec<_>>().len());
            }
        }
    }
}
