//! JSON objects are objects: a type that serde derives takes an array of its fields' values too, in the order of the source code.

use std::fmt;

use serde::Deserialize;
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{self, DeserializeOwned, EnumAccess, IntoDeserializer, Unexpected, VariantAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Value};

/// Reads JSON text.
///
/// # Errors
/// It is not JSON, or not a `T`; or it has an array where `T` has fields with names.
pub(super) fn from_slice<T: DeserializeOwned>(text: &[u8]) -> Result<T, Error> {
    // Errors of the text say where they are.
    serde_json::from_slice::<T>(text)?;
    T::deserialize(Strict(serde_json::from_slice(text)?))
}

/// A value that is what it looks like.
struct Strict(Value);

impl<'de> de::Deserializer<'de> for Strict {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(fields) => {
                visitor.visit_map(MapDeserializer::new(fields.into_iter().map(|(name, value)| (name, Self(value)))))
            }
            Value::Array(values) => visitor.visit_seq(SeqDeserializer::new(values.into_iter().map(Self))),
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.0 {
            Value::Array(_) => Err(de::Error::invalid_type(Unexpected::Other("an array"), &AnObject)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(fields) if fields.len() == 1 => {
                visitor.visit_enum(OneField(fields.into_iter().next().unwrap_or_default()))
            }
            other => other.deserialize_enum(name, variants, visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Error> for Strict {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// A variant with its content: `{"name": content}`.
struct OneField((String, Value));

impl<'de> EnumAccess<'de> for OneField {
    type Error = Error;
    type Variant = Strict;

    fn variant_seed<S: de::DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Strict), Error> {
        let (name, content) = self.0;
        let name: de::value::StringDeserializer<Error> = name.into_deserializer();
        Ok((seed.deserialize(name)?, Strict(content)))
    }
}

impl<'de> VariantAccess<'de> for Strict {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        <()>::deserialize(self)
    }

    fn newtype_variant_seed<S: de::DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        de::Deserializer::deserialize_any(self, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        de::Deserializer::deserialize_struct(self, "", fields, visitor)
    }
}

struct AnObject;

impl de::Expected for AnObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        number: u32,
        #[serde(default)]
        inner: Option<Inner>,
        #[serde(default)]
        list: Vec<Inner>,
        #[serde(default)]
        labels: BTreeMap<String, String>,
        #[serde(default)]
        choice: Choice,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        text: Option<String>,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum Choice {
        #[default]
        None,
        One(Inner),
        Pair(u8, u8),
        Named {
            text: String,
        },
    }

    fn read(text: &str) -> Result<Outer, String> {
        from_slice(text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn objects_are_read_as_without_it() {
        for text in [
            r#"{"number": 1}"#,
            r#"{"number": 1, "inner": null}"#,
            r#"{"number": 1, "inner": {"text": "a"}, "list": [{"text": "b"}, {}], "labels": {"c": "d"}}"#,
            r#"{"number": 1, "choice": "none"}"#,
            r#"{"number": 1, "choice": {"one": {"text": "a"}}}"#,
            r#"{"number": 1, "choice": {"pair": [1, 2]}}"#,
            r#"{"number": 1, "choice": {"named": {"text": "a"}}}"#,
            r#"{"number": 1, "choice": {"none": null}}"#,
        ] {
            assert_eq!(read(text), Ok(serde_json::from_str::<Outer>(text).unwrap()), "{text}");
        }
    }

    #[test]
    fn an_array_is_no_object() {
        for text in [
            r#"[1, null, [], {}, "none"]"#,
            r#"{"number": 1, "inner": ["a"]}"#,
            r#"{"number": 1, "list": [["b"]]}"#,
            r#"{"number": 1, "choice": {"one": ["a"]}}"#,
            r#"{"number": 1, "choice": {"named": ["a"]}}"#,
        ] {
            assert!(serde_json::from_str::<Outer>(text).is_ok(), "serde takes it: {text}");
            assert_eq!(read(text), Err("invalid type: an array, expected an object".into()), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, error) in [
            (r#"{"number": -1}"#, "invalid value: integer `-1`, expected u32 at line 1 column 13"),
            (r#"{"number": 1, "x": 1}"#, "unknown field `x`"),
            (r#"{"number": 1, "number": 1}"#, "duplicate field `number`"),
            (r#"{"number": 1, "choice": "two"}"#, "unknown variant `two`"),
            (r#"{"number": 1"#, "EOF while parsing"),
        ] {
            let found = read(text).unwrap_err();
            assert!(found.contains(error), "{text}: {found}");
        }
    }
}
