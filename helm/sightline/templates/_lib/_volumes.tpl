{{/* What a component's container sees of the world beside its image, which is read-only. */}}

{{/* Whether a component runs models that do not come with the image. */}}
{{- define "sightline.modelVolume" -}}
{{- if and (has "classifier" .roles) (ne .root.Values.classifier.modelSource.kind "image") }}true{{ end -}}
{{- end -}}

{{/* Whether a component keeps files: statistics, or events that wait for them. */}}
{{- define "sightline.dataVolume" -}}
{{- if or (has "ingest" .roles) (has "stats" .roles) }}true{{ end -}}
{{- end -}}

{{/* Whether a component checks a store's certificate with certificates of our own. */}}
{{- define "sightline.caVolume" -}}
{{- range .roles -}}
{{- if include "sightline.caSetting" (dict "values" $.root.Values "role" .) }}true{{ end -}}
{{- end -}}
{{- end -}}

{{- define "sightline.ca" -}}
- name: ca
  secret:
    secretName: {{ .Values.ca.secretName }}
    # 0444: certificates are no secret.
    defaultMode: 292
    items:
      - key: {{ .Values.ca.key }}
        path: ca.crt
{{- end -}}

{{- define "sightline.mounts" -}}
- name: config
  mountPath: /etc/sightline
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- if include "sightline.dataVolume" . }}
- name: data
  mountPath: /var/lib/sightline
{{- end }}
{{- if .root.Values.auth.secretName }}
- name: auth
  mountPath: /etc/sightline-auth
  readOnly: true
{{- end }}
{{- if include "sightline.caVolume" . }}
- name: ca
  mountPath: /etc/sightline-ca
  readOnly: true
{{- end }}
{{- include "sightline.tlsMounts" . }}
{{- if include "sightline.modelVolume" . }}
- name: models
  mountPath: /models
  readOnly: true
{{- end }}
{{- end -}}

{{- define "sightline.volumes" -}}
{{- $values := .root.Values -}}
- name: config
  configMap:
    name: {{ include "sightline.componentName" . }}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- if eq .name "ingest" }}
- name: data
  emptyDir:
    sizeLimit: {{ $values.ingest.spoolSize }}
{{- else if eq .name "stats" }}
- name: data
  {{- if eq $values.stats.store "sqlite" }}
  persistentVolumeClaim:
    claimName: {{ default (include "sightline.componentName" .) $values.stats.persistence.existingClaim }}
  {{- else }}
  emptyDir:
    sizeLimit: 64Mi
  {{- end }}
{{- end }}
{{- with $values.auth }}
{{- if .secretName }}
- name: auth
  projected:
    # 0440: for the group 10001, which fsGroup makes the files of.
    defaultMode: 288
    sources:
      - secret:
          name: {{ .secretName }}
          items:
            - key: {{ .key }}
              path: key
      {{- if has $.name (list "ingest" "all-in-one") }}
      - secret:
          name: {{ .serviceTokenSecretName }}
          items:
            - key: {{ .serviceTokenKey }}
              path: service-token
      {{- end }}
{{- end }}
{{- end }}
{{- if include "sightline.caVolume" . }}
{{ include "sightline.ca" .root }}
{{- end }}
{{- include "sightline.tlsVolumes" . }}
{{- if include "sightline.modelVolume" . }}
- name: models
  {{- with $values.classifier.modelSource }}
  {{- if eq .kind "pvc" }}
  persistentVolumeClaim:
    claimName: {{ .claimName }}
    readOnly: true
  {{- else if eq .kind "hostPath" }}
  hostPath:
    path: {{ .hostPath }}
    type: Directory
  {{- else }}
  emptyDir:
    sizeLimit: {{ .init.sizeLimit }}
  {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The container that fetches models into a volume before the classifier starts. */}}
{{- define "sightline.modelContainer" -}}
{{- $source := .root.Values.classifier.modelSource -}}
{{- if and (has "classifier" .roles) (eq $source.kind "init") -}}
initContainers:
  - name: models
    image: {{ default (include "sightline.image" .) $source.init.image }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    command: {{ toJson $source.init.command }}
    {{- with $source.init.env }}
    env:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    resources:
      {{- toYaml $source.init.resources | nindent 6 }}
    securityContext:
      {{- include "sightline.containerSecurity" . | nindent 6 }}
    volumeMounts:
      - name: models
        mountPath: /models
      - name: tmp
        mountPath: /tmp
{{- end -}}
{{- end -}}
