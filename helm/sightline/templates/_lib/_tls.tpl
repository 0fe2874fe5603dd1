{{/* TLS: who a service is, where its certificate lies, and who may call it. */}}

{{/* Whether services prove to each other who they are; all in one pod they have nobody to prove it to. */}}
{{- define "sightline.mutualTls" -}}
{{- if and .Values.tls.enabled (eq .Values.mode "distributed") }}true{{ end -}}
{{- end -}}

{{/* Whether the port of a role speaks TLS; context: root, role. */}}
{{- define "sightline.speaksTls" -}}
{{- if eq .role "ingest" -}}
{{- if .root.Values.edgeTls.secretName }}true{{ end -}}
{{- else -}}
{{- include "sightline.mutualTls" .root -}}
{{- end -}}
{{- end -}}

{{/* Who a component is: its service account. */}}
{{- define "sightline.spiffeId" -}}
spiffe://{{ .root.Values.tls.trustDomain }}/ns/{{ .root.Release.Namespace }}/sa/{{ include "sightline.componentName" . }}
{{- end -}}

{{/* The Secret with a component's certificate. */}}
{{- define "sightline.tlsSecret" -}}
{{- $made := printf "%s-tls" (include "sightline.componentName" .) -}}
{{- default $made (index .root.Values.tls.secretNames .name) -}}
{{- end -}}

{{/* The sections [tls] and [edge_tls] of a component's configuration. */}}
{{- define "sightline.tlsConfig" -}}
{{- $values := .root.Values -}}
{{- if include "sightline.mutualTls" .root }}

[tls]
cert_file = "/etc/sightline-tls/tls.crt"
key_file = "/etc/sightline-tls/tls.key"
ca_file = "/etc/sightline-tls/ca.crt"
{{- if eq .name "ingest" }}

[tls.servers]
{{- range $upstream := list "classifier" "ratelimiter" "stats" }}
{{ $upstream }} = {{ include "sightline.spiffeId" (dict "root" $.root "name" $upstream) | list | toJson }}
{{- end }}
{{- else }}

[tls.callers]
{{- $ingest := include "sightline.spiffeId" (dict "root" .root "name" "ingest") }}
{{ .name }} = {{ concat (list $ingest) (index $values.tls.callers .name) | toJson }}
{{- end }}
{{- end }}
{{- if include "sightline.edgeTlsVolume" . }}

[edge_tls]
cert_file = "/etc/sightline-edge-tls/tls.crt"
key_file = "/etc/sightline-edge-tls/tls.key"
{{- end }}
{{- end -}}

{{/* Whether a component shows clients a certificate. */}}
{{- define "sightline.edgeTlsVolume" -}}
{{- if and .root.Values.edgeTls.secretName (has "ingest" .roles) }}true{{ end -}}
{{- end -}}

{{- define "sightline.tlsMounts" -}}
{{- if include "sightline.mutualTls" .root }}
- name: tls
  mountPath: /etc/sightline-tls
  readOnly: true
{{- end }}
{{- if include "sightline.edgeTlsVolume" . }}
- name: edge-tls
  mountPath: /etc/sightline-edge-tls
  readOnly: true
{{- end }}
{{- end -}}

{{/* A volume's files are exchanged together when a Secret changes, and read again without a restart. */}}
{{- define "sightline.tlsVolumes" -}}
{{- if include "sightline.mutualTls" .root }}
- name: tls
  projected:
    # 0440: for the group 10001, which fsGroup makes the files of.
    defaultMode: 288
    sources:
      - secret:
          name: {{ include "sightline.tlsSecret" . }}
          items:
            - key: tls.crt
              path: tls.crt
            - key: tls.key
              path: tls.key
            {{- with .root.Values.tls.bundle }}
            {{- if not .name }}
            - key: {{ .key }}
              path: ca.crt
            {{- end }}
            {{- end }}
      {{- with .root.Values.tls.bundle }}
      {{- if .name }}
      - {{ .kind }}:
          name: {{ .name }}
          items:
            - key: {{ .key }}
              path: ca.crt
      {{- end }}
      {{- end }}
{{- end }}
{{- if include "sightline.edgeTlsVolume" . }}
- name: edge-tls
  secret:
    secretName: {{ .root.Values.edgeTls.secretName }}
    defaultMode: 288
    items:
      - key: tls.crt
        path: tls.crt
      - key: tls.key
        path: tls.key
{{- end }}
{{- end -}}

{{/* TLS that cannot work. */}}
{{- define "sightline.problems.tls" -}}
{{- $p := list -}}
{{- $tls := .Values.tls -}}
{{- $edge := .Values.edgeTls -}}
{{- $made := or $tls.certManager.enabled $edge.certManager.enabled -}}
{{- if and $tls.enabled (eq .Values.mode "all-in-one") -}}
{{- $p = append $p "mode \"all-in-one\" calls itself inside one pod: unset tls.enabled; edgeTls.secretName encrypts what clients send" -}}
{{- else if $tls.enabled -}}
{{- range $service := list "ingest" "classifier" "ratelimiter" "stats" -}}
{{- if not (or $tls.certManager.enabled (index $tls.secretNames $service)) -}}
{{- $p = append $p (printf "tls.secretNames.%s is empty: name the Secret with its certificate, or let cert-manager make it (tls.certManager.enabled)" $service) -}}
{{- end -}}
{{- end -}}
{{- else if or $tls.certManager.enabled $tls.bundle.name (compact (values $tls.secretNames)) (concat $tls.callers.classifier $tls.callers.ratelimiter $tls.callers.stats) -}}
{{- $p = append $p "tls.secretNames, tls.bundle, tls.certManager and tls.callers have no effect, and calls would not be encrypted: set tls.enabled" -}}
{{- end -}}
{{- if and $tls.enabled $tls.certManager.enabled (not $tls.certManager.issuer.name) -}}
{{- $p = append $p "tls.certManager.issuer.name is empty: name the issuer that signs the services' certificates" -}}
{{- end -}}
{{- if $edge.certManager.enabled -}}
{{- range $key, $value := dict "edgeTls.secretName" $edge.secretName "edgeTls.certManager.dnsNames" $edge.certManager.dnsNames "edgeTls.certManager.issuer.name" $edge.certManager.issuer.name -}}
{{- if not $value -}}
{{- $p = append $p (printf "%s is empty: edgeTls.certManager needs the Secret to fill, the names that clients call and the issuer" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $made (not (.Capabilities.APIVersions.Has "cert-manager.io/v1/Certificate")) -}}
{{- $p = append $p "certManager wants a Certificate, a kind that the cluster does not have: install cert-manager first (for helm template: --api-versions cert-manager.io/v1/Certificate)" -}}
{{- end -}}
{{- $ingress := .Values.ingest.ingress -}}
{{- $protocol := get $ingress.annotations "nginx.ingress.kubernetes.io/backend-protocol" -}}
{{- if and $ingress.enabled $edge.secretName (eq $protocol "GRPC") -}}
{{- $p = append $p "edgeTls.secretName is set, and ingest.ingress.annotations tell the controller that ingest speaks plain gRPC: set nginx.ingress.kubernetes.io/backend-protocol to \"GRPCS\", or leave TLS to the controller" -}}
{{- end -}}
{{- if and $ingress.enabled (not $edge.secretName) (eq $protocol "GRPCS") -}}
{{- $p = append $p "ingest.ingress.annotations tell the controller that ingest speaks TLS, and edgeTls.secretName is empty: set backend-protocol to \"GRPC\", or name the Secret" -}}
{{- end -}}
{{- toJson $p -}}
{{- end -}}
