//! What the service tells: a JSON document, as plain data.

use serde_json::{Map, Value};

/// A document, and the most bytes that it may have as text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Store {
    /// `null` at first.
    document: Value,
    is_set: bool,
    limit: usize,
}

/// Why a document was not taken. What was there before is still there.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StoreError {
    /// It is too large.
    #[error("the metadata would have {bytes} bytes as JSON: expected at most {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The most that it may have.
        limit: usize,
    },
    /// There is nothing to change.
    #[error("there is no metadata yet: expected a whole document first")]
    Empty,
}

/// How a value is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Format {
    Json,
    /// As EC2's service does: the keys of an object, one a line, or the text of a string.
    Lines,
}

/// Why a value was not told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Missing {
    Nowhere,
    /// It is neither an object nor a string.
    Kind,
}

impl Store {
    pub(super) const fn new(limit: usize) -> Self {
        Self { document: Value::Null, is_set: false, limit }
    }

    /// Sets the whole document.
    pub(super) fn put(&mut self, document: Value) -> Result<(), StoreError> {
        let bytes = document.to_string().len();
        if bytes > self.limit {
            return Err(StoreError::TooLarge { bytes, limit: self.limit });
        }
        self.document = document;
        self.is_set = true;
        Ok(())
    }

    /// Merges `patch` into the document (RFC 7396).
    pub(super) fn patch(&mut self, patch: Value) -> Result<(), StoreError> {
        if !self.is_set {
            return Err(StoreError::Empty);
        }
        let mut document = self.document.clone();
        merge(&mut document, patch);
        self.put(document)
    }

    /// The document; `null` if there is none.
    pub(super) const fn get(&self) -> &Value {
        &self.document
    }

    /// The value at `path`, whose parts are behind slashes.
    pub(super) fn tell(&self, path: &str, format: Format) -> Result<String, Missing> {
        let path = path.strip_suffix('/').unwrap_or(path);
        let value = self.document.pointer(path).ok_or(Missing::Nowhere)?;
        match (format, value) {
            (Format::Json, value) => Ok(value.to_string()),
            (Format::Lines, Value::Object(object)) => Ok(lines(object)),
            (Format::Lines, Value::String(text)) => Ok(text.clone()),
            (Format::Lines, _) => Err(Missing::Kind),
        }
    }
}

fn lines(object: &Map<String, Value>) -> String {
    let line = |(key, value): (&String, &Value)| if value.is_object() { format!("{key}/") } else { key.clone() };
    object.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// No deeper than the deeper of the two, whose depth their parser has bounded.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(&key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn store() -> Store {
        let mut store = Store::new(200);
        store
            .put(json!({ "latest": { "meta-data": { "ami-id": "ami-1", "n": 7 }, "user": "x" }, "a/b": "c" }))
            .unwrap();
        store
    }

    #[test]
    fn values_are_told_by_path_and_format() {
        let store = store();
        let tell = |path| (store.tell(path, Format::Json), store.tell(path, Format::Lines));
        for path in ["/latest", "/latest/"] {
            let (json, lines) = tell(path);
            assert_eq!(json.unwrap(), r#"{"meta-data":{"ami-id":"ami-1","n":7},"user":"x"}"#);
            assert_eq!(lines.unwrap(), "meta-data/\nuser");
        }
        assert_eq!(tell("/latest/meta-data/ami-id"), (Ok("\"ami-1\"".into()), Ok("ami-1".into())));
        assert_eq!(tell("/latest/meta-data/n"), (Ok("7".into()), Err(Missing::Kind)));
        assert_eq!(tell("/a~1b").1.unwrap(), "c");
        assert_eq!(tell("/").1.unwrap(), "a/b\nlatest/");
        for path in ["/none", "latest", "/latest//user", "/latest/user/x"] {
            assert_eq!(tell(path).1, Err(Missing::Nowhere), "{path}");
        }
        assert_eq!(Store::new(9).tell("/a", Format::Json), Err(Missing::Nowhere));
        assert_eq!(Store::new(9).tell("/", Format::Lines), Err(Missing::Kind));
    }

    #[test]
    fn a_patch_merges_and_a_refusal_changes_nothing() {
        let mut store = store();
        store.patch(json!({ "latest": { "user": null, "meta-data": { "n": { "m": 1 } } }, "a/b": [1] })).unwrap();
        assert_eq!(
            *store.get(),
            json!({ "latest": { "meta-data": { "ami-id": "ami-1", "n": { "m": 1 } } }, "a/b": [1] })
        );
        let before = store.clone();
        let large = json!({ "x": "y".repeat(200) });
        for refused in [store.clone().patch(large.clone()), store.put(large)] {
            let message = refused.unwrap_err().to_string();
            assert!(message.contains("at most 200"), "{message}");
        }
        assert_eq!(store, before);
        assert_eq!(Store::new(9).patch(json!({})), Err(StoreError::Empty));
        assert_eq!(*Store::new(9).get(), Value::Null);
    }
}
