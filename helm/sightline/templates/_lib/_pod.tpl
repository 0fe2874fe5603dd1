{{/* The pod of a component; context: root, name, roles. */}}

{{/* Seconds from the first word of its end to the end at most: one lame duck, then each role may drain and flush, each
     within its bound; roles of one pod stop one after another. */}}
{{- define "sightline.drainBound" -}}
{{- $own := index .root.Values (include "sightline.valuesKey" .name) -}}
{{- add $own.preStopSeconds .root.Values.server.lameDuckSeconds (mul 2 $own.drainSeconds (len .roles)) -}}
{{- end -}}

{{- define "sightline.grace" -}}
{{- $own := index .root.Values (include "sightline.valuesKey" .name) -}}
{{- if $own.terminationGracePeriodSeconds -}}
{{- $own.terminationGracePeriodSeconds -}}
{{- else -}}
{{- add 5 (include "sightline.drainBound" .) -}}
{{- end -}}
{{- end -}}

{{- define "sightline.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "sightline.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "sightline.probe" -}}
{{- $probe := index .root.Values.probes .kind -}}
{{- if include "sightline.speaksTls" . -}}
{{- /* Kubernetes' gRPC probes speak no TLS: the port for metrics says the same in plain HTTP. */ -}}
httpGet:
  path: {{ ternary "/livez" "/servingz" (eq .kind "liveness") }}
  port: metrics
{{- else -}}
grpc:
  port: {{ include "sightline.port" .role }}
  service: {{ include "sightline.grpcService" .role }}
{{- end }}
periodSeconds: {{ $probe.periodSeconds }}
failureThreshold: {{ $probe.failureThreshold }}
timeoutSeconds: {{ .root.Values.probes.timeoutSeconds }}
{{- end -}}

{{- define "sightline.podTemplate" -}}
{{- $root := .root -}}
{{- $own := index .root.Values (include "sightline.valuesKey" .name) -}}
{{- $facing := ternary "ingest" .name (eq .name "all-in-one") -}}
metadata:
  labels:
    {{- include "sightline.podLabels" . | nindent 4 }}
    {{- with $own.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # A changed configuration is a changed pod: a rollout follows.
    checksum/config: {{ include "sightline.configFiles" . | sha256sum }}
    kubectl.kubernetes.io/default-container: sightline
    {{- with mergeOverwrite (dict) $root.Values.commonAnnotations $own.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "sightline.componentName" . }}
  automountServiceAccountToken: {{ include "sightline.watches" . | eq "true" }}
  # The cluster would set SIGHTLINE_INGEST_SERVICE_HOST and the like, which the program refuses as unknown settings.
  enableServiceLinks: false
  # preStop, a lame duck, then a drain and a flush within drain_timeout each{{ if gt (len .roles) 1 }}, one service after another{{ end }}.
  terminationGracePeriodSeconds: {{ include "sightline.grace" . }}
  {{- with $own.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if and (eq .name "classifier") $own.runtimeClassName }}
  runtimeClassName: {{ $own.runtimeClassName }}
  {{- end }}
  securityContext:
    {{- include "sightline.podSecurity" . | nindent 4 }}
  {{- with include "sightline.modelContainer" . }}
  {{- . | nindent 2 }}
  {{- end }}
  containers:
    - name: sightline
      image: {{ include "sightline.image" . }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: [serve, {{ join ", " .roles }}, --config, /etc/sightline/sightline.toml]
      {{- with include "sightline.env" . | trim }}
      env:
        {{- . | nindent 8 }}
      {{- end }}
      ports:
        - name: grpc
          containerPort: {{ include "sightline.port" $facing }}
        - name: metrics
          containerPort: 7400
      {{- range $kind := list "startup" "readiness" "liveness" }}
      {{ $kind }}Probe:
        {{- include "sightline.probe" (dict "root" $root "kind" $kind "role" $facing) | nindent 8 }}
      {{- end }}
      {{- with $own.preStopSeconds }}
      lifecycle:
        # Before the lame duck, in which the pod serves on and says that it goes.
        preStop:
          sleep:
            seconds: {{ . }}
      {{- end }}
      resources:
        {{- toYaml $own.resources | nindent 8 }}
      securityContext:
        {{- include "sightline.containerSecurity" . | nindent 8 }}
      volumeMounts:
        {{- include "sightline.mounts" . | trim | nindent 8 }}
  volumes:
    {{- include "sightline.volumes" . | trim | nindent 4 }}
  {{- with include "sightline.placement" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Where pods go. */}}
{{- define "sightline.placement" -}}
{{- $own := index .root.Values (include "sightline.valuesKey" .name) -}}
{{- with $own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $spread := .root.Values.topologySpread -}}
{{- if and (ne .name "all-in-one") (or $spread.zone $spread.host) }}
topologySpreadConstraints:
  {{- range $key, $how := dict "topology.kubernetes.io/zone" $spread.zone "kubernetes.io/hostname" $spread.host }}
  {{- if $how }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $how }}
    labelSelector:
      matchLabels:
        {{- include "sightline.selector" $ | nindent 8 }}
    # Pods of the version before do not count: a rollout ends as evenly as it began.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
  {{- end }}
{{- end }}
{{- end -}}
