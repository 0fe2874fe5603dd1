{{/* The objects that every service has. Context: root, name, roles. */}}

{{/* No pod of the old version ends before one of the new is ready; a single pod with a volume cannot overlap. */}}
{{- define "sightline.deployment" -}}
{{- $own := index .root.Values .name -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "sightline.metadata" . | nindent 2 }}
spec:
  {{- if not $own.autoscaling.enabled }}
  replicas: {{ $own.replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  progressDeadlineSeconds: 900
  strategy:
    {{- if and (eq .name "stats") (eq .root.Values.stats.store "sqlite") }}
    type: Recreate
    {{- else }}
    type: RollingUpdate
    rollingUpdate:
      maxUnavailable: 0
      maxSurge: 1
    {{- end }}
  selector:
    matchLabels:
      {{- include "sightline.selector" . | nindent 6 }}
  template:
    {{- include "sightline.podTemplate" . | nindent 4 }}
{{- end -}}

{{- define "sightline.headless" -}}
{{- $facing := ternary "ingest" .name (eq .name "all-in-one") -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "sightline.metadata" (merge (dict "suffix" "-headless") .) | nindent 2 }}
spec:
  # gRPC clients balance for themselves: they need every pod's address, not one for all.
  clusterIP: None
  selector:
    {{- include "sightline.selector" . | nindent 4 }}
  ports:
    - name: grpc
      port: {{ include "sightline.port" $facing }}
      targetPort: grpc
      appProtocol: {{ ternary "https" "kubernetes.io/h2c" (include "sightline.speaksTls" (dict "root" .root "role" $facing) | eq "true") }}
    - name: metrics
      port: 7400
      targetPort: metrics
{{- end -}}

{{- define "sightline.configMap" -}}
apiVersion: v1
kind: ConfigMap
metadata:
  {{- include "sightline.metadata" . | nindent 2 }}
data:
  {{- include "sightline.configFiles" . | nindent 2 }}
{{- end -}}

{{- define "sightline.serviceAccount" -}}
{{- $own := index .root.Values (include "sightline.valuesKey" .name) -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "sightline.metadata" (merge (dict "annotations" $own.serviceAccount.annotations) .) | nindent 2 }}
automountServiceAccountToken: false
{{- end -}}

{{- define "sightline.pdb" -}}
{{- $own := index .root.Values .name -}}
{{- if $own.pdb.enabled -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "sightline.metadata" . | nindent 2 }}
spec:
  maxUnavailable: {{ $own.pdb.maxUnavailable }}
  # Pods that do not work anyway hold no drain back.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "sightline.selector" . | nindent 6 }}
{{- end -}}
{{- end -}}

{{- define "sightline.hpa" -}}
{{- $scale := (index .root.Values .name).autoscaling -}}
{{- if $scale.enabled -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "sightline.metadata" . | nindent 2 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "sightline.componentName" . }}
  minReplicas: {{ $scale.minReplicas }}
  maxReplicas: {{ $scale.maxReplicas }}
  metrics:
    {{- range $resource, $target := dict "cpu" $scale.targetCPU "memory" $scale.targetMemory }}
    {{- if $target }}
    - type: Resource
      resource:
        name: {{ $resource }}
        target:
          type: Utilization
          averageUtilization: {{ $target }}
    {{- end }}
    {{- end }}
    {{- if $scale.targetQueueDepth }}
    - type: Pods
      pods:
        metric:
          name: classifier_queue_depth
        target:
          type: AverageValue
          averageValue: {{ $scale.targetQueueDepth | quote }}
    {{- end }}
  behavior:
    scaleUp:
      stabilizationWindowSeconds: 0
      policies:
        - type: Percent
          value: {{ $scale.scaleUpPercent }}
          periodSeconds: 30
    scaleDown:
      stabilizationWindowSeconds: {{ $scale.scaleDownStabilizationSeconds }}
      policies:
        - type: Percent
          value: {{ $scale.scaleDownPercent }}
          periodSeconds: 60
{{- end -}}
{{- end -}}

{{/* Names and namespaces are looked up before anything else is called. */}}
{{- define "sightline.dnsRule" -}}
- to:
    {{- toYaml .Values.networkPolicy.dnsTo | nindent 4 }}
  ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- end -}}

{{/* One rule of egress to a server outside; no peers: anywhere on its port. */}}
{{- define "sightline.egressRule" -}}
- ports:
    {{- range .ports }}
    - port: {{ . }}
      protocol: TCP
    {{- end }}
  {{- with .to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Who reads metrics, and where traces go: the same for every component. */}}
{{- define "sightline.metricsRule" -}}
{{- with .Values.networkPolicy.metricsFrom }}
- ports:
    - port: metrics
      protocol: TCP
  from:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end -}}

{{- define "sightline.otlpRule" -}}
{{- if .Values.telemetry.otlpEndpoint }}
{{ include "sightline.egressRule" (dict "to" .Values.networkPolicy.otlpTo "ports" (list .Values.networkPolicy.otlpPort)) }}
{{- end }}
{{- end -}}

{{/* Pods of another component of this release. */}}
{{- define "sightline.peer" -}}
- podSelector:
    matchLabels:
      {{- include "sightline.selector" . | nindent 6 }}
{{- end -}}

{{/* What a component that watches EndpointSlices may do, in the release's namespace and nowhere else. */}}
{{- define "sightline.discovery" -}}
{{- if and (include "sightline.watches" .) .root.Values.discovery.rbac -}}
{{- $context := merge (dict "suffix" "-discovery") . -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- include "sightline.metadata" $context | nindent 2 }}
rules:
  - apiGroups: [discovery.k8s.io]
    resources: [endpointslices]
    verbs: [get, list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  {{- include "sightline.metadata" $context | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ include "sightline.componentName" . }}-discovery
subjects:
  - kind: ServiceAccount
    name: {{ include "sightline.componentName" . }}
    namespace: {{ .root.Release.Namespace }}
{{- end -}}
{{- end -}}
