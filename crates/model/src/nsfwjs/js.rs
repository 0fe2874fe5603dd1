//! Reads the one value a minified CommonJS bundle exports: an object literal or a string.
//!
//! Only literals are understood (objects, arrays, strings, numbers, `!0`, `!1`, `null`, `void 0`); nothing is run.

use serde_json::{Map, Number, Value};

use super::ConvertError;

/// How deep literals may nest before they are refused.
const MAX_DEPTH: usize = 64;

/// The value assigned to `.exports` of the bundle's only inner module.
pub(super) fn exported(file: &str, source: &str) -> Result<Value, ConvertError> {
    // The bundler's frame comes first and assigns `module.exports=e()`; the module's own value starts with a literal.
    let marker = ".exports=";
    for (at, _) in source.match_indices(marker) {
        let start = at + marker.len();
        if matches!(source.as_bytes().get(start), Some(b'{' | b'"' | b'\'' | b'[')) {
            let mut parser = Parser { file, source, at: start };
            // `n.exports={}` is how the frame creates an empty module.
            let value = parser.value(0)?;
            if value.as_object().is_none_or(|object| object.contains_key("modelTopology")) {
                return Ok(value);
            }
        }
    }
    Err(ConvertError::Bundle { file: file.to_owned(), at: 0, problem: "exports no literal".to_owned() })
}

struct Parser<'a> {
    file: &'a str,
    source: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn fail<T>(&self, problem: &str) -> Result<T, ConvertError> {
        Err(ConvertError::Bundle { file: self.file.to_owned(), at: self.at, problem: problem.to_owned() })
    }

    fn rest(&self) -> &str {
        &self.source[self.at..]
    }

    fn peek(&mut self) -> Option<u8> {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
        self.source.as_bytes().get(self.at).copied()
    }

    fn eat(&mut self, token: &str) -> bool {
        self.peek();
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn value(&mut self, depth: usize) -> Result<Value, ConvertError> {
        if depth > MAX_DEPTH {
            return self.fail("nests too deep");
        }
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"' | b'\'') => Ok(Value::String(self.string()?)),
            Some(b'-' | b'.' | b'0'..=b'9') => self.number(),
            _ => {
                for (token, value) in [
                    ("!0", Value::Bool(true)),
                    ("!1", Value::Bool(false)),
                    ("true", Value::Bool(true)),
                    ("false", Value::Bool(false)),
                    ("null", Value::Null),
                    ("void 0", Value::Null),
                ] {
                    if self.eat(token) {
                        return Ok(value);
                    }
                }
                self.fail("is not a literal")
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, ConvertError> {
        let mut map = Map::new();
        self.eat("{");
        while !self.eat("}") {
            let key = match self.peek() {
                Some(b'"' | b'\'') => self.string()?,
                _ => self.identifier()?,
            };
            if !self.eat(":") {
                return self.fail("lacks a colon after a key");
            }
            let value = self.value(depth + 1)?;
            map.insert(key, value);
            if !self.eat(",") && self.peek() != Some(b'}') {
                return self.fail("lacks a comma or closing brace");
            }
        }
        Ok(Value::Object(map))
    }

    fn array(&mut self, depth: usize) -> Result<Value, ConvertError> {
        let mut items = Vec::new();
        self.eat("[");
        while !self.eat("]") {
            items.push(self.value(depth + 1)?);
            if !self.eat(",") && self.peek() != Some(b']') {
                return self.fail("lacks a comma or closing bracket");
            }
        }
        Ok(Value::Array(items))
    }

    fn identifier(&mut self) -> Result<String, ConvertError> {
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap_or(rest.len());
        if end == 0 {
            return self.fail("lacks a key");
        }
        let name = rest[..end].to_owned();
        self.at += end;
        Ok(name)
    }

    fn number(&mut self) -> Result<Value, ConvertError> {
        let rest = self.rest();
        let end =
            rest.find(|c: char| !matches!(c, '0'..='9' | '.' | '-' | '+' | 'e' | 'E')).unwrap_or(rest.len());
        let text = &rest[..end];
        let number = match text.parse::<i64>() {
            Ok(whole) => Some(Number::from(whole)),
            Err(_) => text.parse::<f64>().ok().and_then(Number::from_f64),
        };
        match number {
            Some(number) => {
                self.at += end;
                Ok(Value::Number(number))
            }
            None => self.fail("has a malformed number"),
        }
    }

    fn string(&mut self) -> Result<String, ConvertError> {
        let quote = char::from(self.source.as_bytes()[self.at]);
        let body = &self.source[self.at + 1..];
        // Weights are megabytes of base64 without escapes: find the end in one go.
        let Some(end) = body.find([quote, '\\']) else { return self.fail("has an unfinished string") };
        if body.as_bytes()[end] == b'\\' {
            return self.fail("has an escape in a string");
        }
        let text = body[..end].to_owned();
        self.at += end + 2;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn literals_of_a_minified_bundle_are_read() {
        let source = r#"(function(){var n={};n.exports={};n.exports=e();({1:[function(e,a){a.exports={modelTopology:{a:!0,"b-c":[1,-.5,2e-3],d:null,e:void 0}}},{}]})})"#;
        let value = exported("m.js", source).unwrap();
        assert_eq!(
            value,
            json!({"modelTopology": {"a": true, "b-c": [1, -0.5, 0.002], "d": null, "e": null}})
        );
        assert_eq!(exported("w.js", r#"a.exports="QUJD"}"#).unwrap(), json!("QUJD"));
    }

    #[test]
    fn code_is_not_mistaken_for_a_literal() {
        for source in [
            "",
            "a.exports={modelTopology:f()}",
            "a.exports=\"x",
            "a.exports={modelTopology:1",
            "a.exports=\"a\\n\"",
        ] {
            assert!(exported("m.js", source).is_err(), "{source}");
        }
    }
}
