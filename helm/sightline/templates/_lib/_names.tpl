{{/* Names, labels and addresses. A component's context is (dict "root" $ "name" "ingest"). */}}

{{- define "sightline.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sightline.componentName" -}}
{{- printf "%s-%s" (include "sightline.fullname" .root) .name -}}
{{- end -}}

{{/* What a component's pods are found by. Never changes over an upgrade. */}}
{{- define "sightline.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end -}}

{{- define "sightline.labels" -}}
{{ include "sightline.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: sightline
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of pods: no versions, so that a new chart that changes nothing of a pod restarts none. */}}
{{- define "sightline.podLabels" -}}
{{ include "sightline.selector" . }}
app.kubernetes.io/part-of: sightline
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The metadata of a component's object; "suffix" is put after its name, "annotations" are more annotations. */}}
{{- define "sightline.metadata" -}}
name: {{ include "sightline.componentName" . }}{{ default "" .suffix }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "sightline.labels" . | nindent 2 }}
{{- with mergeOverwrite (dict) .root.Values.commonAnnotations (default (dict) .annotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "sightline.port" -}}
{{- get (dict "ingest" 7401 "classifier" 7402 "ratelimiter" 7403 "stats" 7404) . -}}
{{- end -}}

{{- define "sightline.grpcService" -}}
{{- get (dict "ingest" "sightline.ingest.v1.IngestService" "classifier" "sightline.classifier.v1.ClassifierService" "ratelimiter" "sightline.ratelimiter.v1.RateLimiterService" "stats" "sightline.stats.v1.StatsService") . -}}
{{- end -}}

{{/* Where a service is found. A headless Service has a record, and an endpoint, for every pod that is ready. */}}
{{- define "sightline.target" -}}
{{- $headless := printf "%s-headless" (include "sightline.componentName" .) -}}
{{- if eq .root.Values.discovery.kind "kubernetes" -}}
k8s://{{ .root.Release.Namespace }}/{{ $headless }}:grpc
{{- else -}}
{{- /* The final dot spares the search path, five questions in most clusters. */ -}}
dns://{{ $headless }}.{{ .root.Release.Namespace }}.svc.{{ .root.Values.clusterDomain }}.:{{ include "sightline.port" .name }}
{{- end -}}
{{- end -}}

{{/* Whether a component watches EndpointSlices: the one that calls others. */}}
{{- define "sightline.watches" -}}
{{- if and (eq .name "ingest") (eq .root.Values.discovery.kind "kubernetes") }}true{{ end -}}
{{- end -}}

{{- define "sightline.image" -}}
{{- $image := .root.Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{- $tag := default .root.Chart.AppVersion $image.tag -}}
{{ $image.repository }}:{{ $tag }}{{ if and (eq .name "classifier") (eq .root.Values.classifier.device "cuda") }}{{ $image.cudaSuffix }}{{ end }}
{{- end -}}
{{- end -}}

{{- define "sightline.insecure" -}}
{{- if eq .Values.insecure.confirm "anybody-who-reaches-a-port-is-let-in" }}true{{ end -}}
{{- end -}}

{{/* The values of a component: the key of all-in-one is spelled as YAML keys are. */}}
{{- define "sightline.valuesKey" -}}
{{- if eq . "all-in-one" }}allInOne{{ else }}{{ . }}{{ end -}}
{{- end -}}
