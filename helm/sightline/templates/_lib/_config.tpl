{{/* The TOML configuration of a component: what the chart decides, then the keys under `settings`. */}}

{{/* Key = value lines of a map. JSON's strings, numbers, booleans and lists are TOML's too. */}}
{{- define "sightline.settings" -}}
{{- range $key, $value := . }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end -}}

{{- define "sightline.config" -}}
{{- $values := .root.Values -}}
{{- $own := index $values (include "sightline.valuesKey" .name) -}}
{{- $alone := eq .name "all-in-one" -}}
[node]
data_dir = "/var/lib/sightline"
insecure = {{ if include "sightline.insecure" .root }}true{{ else }}false{{ end }}
{{- include "sightline.settings" $values.node.settings }}

[telemetry]
log = {{ toJson $values.telemetry.log }}
log_format = "json"
admin_listen = "{{ $values.bindAddress }}:7400"
{{- with $values.telemetry.otlpEndpoint }}
otlp_endpoint = {{ toJson . }}
{{- end }}
{{- include "sightline.settings" $values.telemetry.settings }}
{{- with $values.auth }}
{{- if .secretName }}

[auth]
{{ get (dict "jwks" "jwks_file" "publicKey" "public_key_file" "sharedSecret" "secret_file") .kind }} = "/etc/sightline-auth/key"
{{- if has $.name (list "ingest" "all-in-one") }}
service_token_file = "/etc/sightline-auth/service-token"
{{- end }}
audience = {{ toJson .audience }}
{{- with .issuer }}
issuer = {{ toJson . }}
{{- end }}
{{- end }}
{{- end }}
{{- $watches := include "sightline.watches" . }}
{{- if or $watches $values.discovery.settings }}

[discovery]
{{- if $watches }}
kubernetes_domain = {{ toJson $values.clusterDomain }}
{{- end }}
{{- include "sightline.settings" $values.discovery.settings }}
{{- end }}
{{- with $values.mesh.settings }}

[mesh]
{{- include "sightline.settings" . }}
{{- end }}
{{- include "sightline.tlsConfig" . }}

[server]
lame_duck = "{{ $values.server.lameDuckSeconds }}s"
{{- include "sightline.settings" $values.server.settings }}
{{- range $role := .roles }}
{{- $section := index $values $role }}
{{- $bind := ternary "127.0.0.1" $values.bindAddress (and $alone (ne $role "ingest")) }}

[{{ $role }}]
listen = "{{ $bind }}:{{ include "sightline.port" $role }}"
drain_timeout = "{{ $own.drainSeconds }}s"
{{- if and (eq $role "ingest") (not $alone) }}
{{- range $upstream := list "classifier" "ratelimiter" "stats" }}
{{ $upstream }} = {{ include "sightline.target" (dict "root" $.root "name" $upstream) | list | toJson }}
{{- end }}
{{- end }}
{{- if eq $role "classifier" }}
device = "{{ ternary "cuda:0" "cpu" (eq $section.device "cuda") }}"
models = {{ include "sightline.models" $.root }}
{{- end }}
{{- if eq $role "ratelimiter" }}
rules = {{ toJson (ternary "/etc/sightline/rules.toml" $section.rules (ne $section.customRules "")) }}
{{- end }}
{{- with include "sightline.caSetting" (dict "values" $values "role" $role) }}
{{ . }}
{{- end }}
{{- include "sightline.settings" $section.settings }}
{{- if eq $role "ingest" }}
{{- with $values.policy }}

[policy]
{{- include "sightline.settings" . }}
{{- end }}
{{- end }}
{{- end }}
{{ end -}}

{{/* Where the certificates are that a role's store is checked with. */}}
{{- define "sightline.caSetting" -}}
{{- $v := .values -}}
{{- $keys := dict -}}
{{- if $v.redis.cache.secretName }}{{ $_ := set $keys "ingest" "cache_redis_ca_file" }}{{ end -}}
{{- if $v.redis.ratelimiter.secretName }}{{ $_ := set $keys "ratelimiter" "redis_ca_file" }}{{ end -}}
{{- if eq $v.stats.store "postgres" }}{{ $_ := set $keys "stats" "postgres_ca_file" }}{{ end -}}
{{- if and $v.ca.secretName (hasKey $keys .role) -}}
{{ get $keys .role }} = "/etc/sightline-ca/ca.crt"
{{- end -}}
{{- end -}}

{{/* The files of a component's ConfigMap. */}}
{{- define "sightline.configFiles" -}}
sightline.toml: |
  {{- include "sightline.config" . | trim | nindent 2 }}
{{- if and (has "ratelimiter" .roles) .root.Values.ratelimiter.customRules }}
rules.toml: |
  {{- .root.Values.ratelimiter.customRules | trim | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "sightline.modelFolder" -}}
{{- $source := .Values.classifier.modelSource -}}
{{- if eq $source.kind "image" }}{{ $source.imagePath }}{{ else }}/models{{ end -}}
{{- end -}}

{{- define "sightline.models" -}}
{{- $folders := list -}}
{{- range .Values.classifier.models }}
{{- $folders = append $folders (printf "%s/%s" (include "sightline.modelFolder" $) .) }}
{{- end }}
{{- toJson $folders -}}
{{- end -}}

{{/* What only the cluster knows, under the names that the program reads: Secrets, and the zone, which is empty where pods have no
     label of it. */}}
{{- define "sightline.env" -}}
{{- $values := .root.Values -}}
{{- if and (include "sightline.watches" .) (not (hasKey $values.mesh.settings "zone")) }}
- name: SIGHTLINE_MESH_ZONE
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['topology.kubernetes.io/zone']
{{- end }}
{{- $secrets := list -}}
{{- if has "ratelimiter" .roles }}
{{- $secrets = append $secrets (dict "name" "SIGHTLINE_RATELIMITER_REDIS_URL" "from" $values.redis.ratelimiter) }}
{{- end }}
{{- if has "ingest" .roles }}
{{- $secrets = append $secrets (dict "name" "SIGHTLINE_INGEST_CACHE_REDIS_URL" "from" $values.redis.cache) }}
{{- end }}
{{- if and (has "stats" .roles) (eq $values.stats.store "postgres") }}
{{- $secrets = append $secrets (dict "name" "SIGHTLINE_STATS_POSTGRES_URL" "from" $values.postgres) }}
{{- end }}
{{- range $secrets }}
{{- if .from.secretName }}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .from.secretName }}
      key: {{ .from.key }}
{{- end }}
{{- end }}
{{- end -}}
