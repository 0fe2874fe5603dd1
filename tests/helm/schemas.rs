//! What the API server says of every kind, as the JSON schemas that kubeconform reads.
//!
//! The real server's /openapi/v3 is the source, so that schemas fit the version that we install into, custom resources
//! included, and nothing has to be downloaded.

use std::{fs, path::Path};

use serde_json::{Map, Value, json};

use crate::cluster::Cluster;

/// Writes `KIND-GROUP-VERSION.json` (`KIND-VERSION.json` of the core group), lower case, into `folder`. Objects are closed.
pub fn write(cluster: &Cluster, folder: &Path) {
    let index = cluster.get("/openapi/v3");
    let mut count = 0;
    for (path, entry) in index["paths"].as_object().unwrap() {
        if !(path.starts_with("api/") || path.starts_with("apis/")) {
            continue;
        }
        let document = cluster.get(entry["serverRelativeURL"].as_str().unwrap());
        let Some(schemas) = document["components"]["schemas"].as_object() else { continue };
        let closed: Map<String, Value> =
            schemas.iter().map(|(name, schema)| (name.clone(), close(schema))).collect();
        for (name, schema) in schemas {
            let kinds = schema["x-kubernetes-group-version-kind"].as_array().into_iter().flatten();
            for kind in kinds {
                let text = |key: &str| kind[key].as_str().unwrap().to_lowercase();
                let group = text("group");
                let group = group.split('.').next().unwrap();
                let parts = [text("kind").as_str(), group, &text("version")].map(ToOwned::to_owned);
                let file = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
                let whole = json!({
                    "$ref": format!("#/components/schemas/{name}"),
                    "components": {"schemas": closed}
                });
                fs::write(folder.join(file + ".json"), whole.to_string()).unwrap();
                count += 1;
            }
        }
    }
    assert!(count > 50, "only {count} kinds were found");
}

/// OpenAPI as JSON schema: an object with properties takes no others.
fn close(schema: &Value) -> Value {
    match schema {
        Value::Object(map) => {
            let mut map: Map<String, Value> = map
                .iter()
                .filter(|(key, _)| !key.starts_with("x-kubernetes") && *key != "default")
                .map(|(key, value)| (key.clone(), close(value)))
                .collect();
            if map.get("properties").is_some_and(Value::is_object)
                && map.get("type") == Some(&json!("object"))
            {
                map.entry("additionalProperties").or_insert(json!(false));
            }
            map.into()
        }
        Value::Array(list) => list.iter().map(close).collect(),
        other => other.clone(),
    }
}
