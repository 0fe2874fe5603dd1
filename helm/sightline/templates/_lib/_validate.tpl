{{/* Combinations that cannot work, found before anything is installed. Every message names the values and the way out. */}}

{{- define "sightline.validate" -}}
{{- $problems := concat
      (include "sightline.problems.access" . | fromJsonArray)
      (include "sightline.problems.stores" . | fromJsonArray)
      (include "sightline.problems.discovery" . | fromJsonArray)
      (include "sightline.problems.models" . | fromJsonArray)
      (include "sightline.problems.edge" . | fromJsonArray)
      (include "sightline.problems.tls" . | fromJsonArray)
      (include "sightline.problems.monitoring" . | fromJsonArray) -}}
{{- $services := ternary (list "ingest" "classifier" "ratelimiter" "stats") (list) (eq .Values.mode "distributed") -}}
{{- range $name := $services -}}
{{- $context := dict "root" $ "name" $name "roles" (list $name) -}}
{{- $problems = concat $problems (include "sightline.problems.service" $context | fromJsonArray) -}}
{{- end -}}
{{- if eq .Values.mode "all-in-one" -}}
{{- $context := dict "root" $ "name" "all-in-one" "roles" (list "ratelimiter" "classifier" "stats" "ingest") -}}
{{- $problems = concat $problems (include "sightline.problems.grace" $context | fromJsonArray) -}}
{{- end -}}
{{- if $problems -}}
{{- fail (printf "\n\nThese values cannot work:\n  - %s\n" (join "\n  - " $problems)) -}}
{{- end -}}
{{- end -}}

{{/* Who may call. */}}
{{- define "sightline.problems.access" -}}
{{- $p := list -}}
{{- $auth := .Values.auth -}}
{{- $insecure := include "sightline.insecure" . -}}
{{- if and .Values.insecure.confirm (not $insecure) -}}
{{- $p = append $p (printf "insecure.confirm is %q: write \"anybody-who-reaches-a-port-is-let-in\", or leave it empty" .Values.insecure.confirm) -}}
{{- end -}}
{{- if and (not $auth.secretName) (not .Values.insecure.confirm) -}}
{{- $p = append $p "auth.secretName is empty: name the Secret with the keys that tokens are checked with, or confirm insecure.confirm on a closed network" -}}
{{- end -}}
{{- if and $auth.secretName $insecure -}}
{{- $p = append $p "auth.secretName and insecure.confirm are both set: choose one" -}}
{{- end -}}
{{- if and $auth.secretName (not $auth.serviceTokenSecretName) -}}
{{- $p = append $p "auth.serviceTokenSecretName is empty: ingest needs a token with the scope \"service\" to call the other services (`sightline token mint --scope service`)" -}}
{{- end -}}
{{- toJson $p -}}
{{- end -}}

{{/* What several replicas share. */}}
{{- define "sightline.problems.stores" -}}
{{- $p := list -}}
{{- $v := .Values -}}
{{- $manyStats := or (gt (int $v.stats.replicas) 1) $v.stats.autoscaling.enabled -}}
{{- $manyLimiters := or (gt (int $v.ratelimiter.replicas) 1) $v.ratelimiter.autoscaling.enabled -}}
{{- if eq $v.mode "all-in-one" -}}
{{- if or (eq $v.stats.store "postgres") $v.postgres.secretName $v.redis.ratelimiter.secretName $v.redis.cache.secretName -}}
{{- $p = append $p "mode \"all-in-one\" keeps everything in its own stores: unset stats.store, postgres.secretName and redis.*.secretName, or use mode \"distributed\"" -}}
{{- end -}}
{{- else -}}
{{- if and $manyStats (eq $v.stats.store "sqlite") -}}
{{- $p = append $p "stats has more than one replica (stats.replicas or stats.autoscaling) on stats.store \"sqlite\", a file of one process: use stats.store \"postgres\"" -}}
{{- end -}}
{{- if and (eq $v.stats.store "postgres") (not $v.postgres.secretName) -}}
{{- $p = append $p "stats.store is \"postgres\" and postgres.secretName is empty: name the Secret with the database's URL" -}}
{{- end -}}
{{- if and (eq $v.stats.store "sqlite") $v.postgres.secretName -}}
{{- $p = append $p "postgres.secretName is set and stats.store is \"sqlite\", which would not use it: set stats.store to \"postgres\"" -}}
{{- end -}}
{{- if and $manyLimiters (not $v.redis.ratelimiter.secretName) -}}
{{- $p = append $p "ratelimiter has more than one replica (ratelimiter.replicas or ratelimiter.autoscaling) and redis.ratelimiter.secretName is empty: each would count for itself, and let through as many times the limit" -}}
{{- end -}}
{{- end -}}
{{- toJson $p -}}
{{- end -}}

{{/* How services find each other. */}}
{{- define "sightline.problems.discovery" -}}
{{- $p := list -}}
{{- if and (eq .Values.mode "all-in-one") (eq .Values.discovery.kind "kubernetes") -}}
{{- $p = append $p "mode \"all-in-one\" calls itself, and discovery.kind \"kubernetes\" asks for rights though there is nobody to find: use \"dns\"" -}}
{{- end -}}
{{- toJson $p -}}
{{- end -}}

{{/* Where models come from, and on what they run. */}}
{{- define "sightline.problems.models" -}}
{{- $p := list -}}
{{- $v := .Values.classifier -}}
{{- $source := $v.modelSource -}}
{{- $gpus := dig "limits" $v.gpuResource 0 $v.resources | int -}}
{{- if and (eq $source.kind "pvc") (not $source.claimName) -}}
{{- $p = append $p "classifier.modelSource.kind is \"pvc\" and claimName is empty: name the claim that holds the models" -}}
{{- end -}}
{{- if and (eq $source.kind "hostPath") (not (hasPrefix "/" $source.hostPath)) -}}
{{- $p = append $p (printf "classifier.modelSource.hostPath is %q: it must be an absolute path" $source.hostPath) -}}
{{- end -}}
{{- if and (eq $source.kind "init") (not $source.init.command) -}}
{{- $p = append $p "classifier.modelSource.kind is \"init\" and init.command is empty: say what fetches the models into /models" -}}
{{- end -}}
{{- if and (eq .Values.mode "all-in-one") (eq $v.device "cuda") -}}
{{- $p = append $p "mode \"all-in-one\" runs on the CPU: classifier.device \"cuda\" needs mode \"distributed\"" -}}
{{- else if and (eq $v.device "cuda") (lt $gpus 1) -}}
{{- $p = append $p (printf "classifier.device is \"cuda\" and classifier.resources.limits has no %s: without it no GPU is given to the pods" $v.gpuResource) -}}
{{- else if and (eq $v.device "cpu") (gt $gpus 0) -}}
{{- $p = append $p (printf "classifier.resources.limits asks for %s and classifier.device is \"cpu\", which would leave it idle: set device to \"cuda\"" $v.gpuResource) -}}
{{- end -}}
{{- if and (eq $v.device "cuda") .Values.image.digest -}}
{{- $p = append $p "image.digest pins one image for all pods, and classifier.device \"cuda\" needs the CUDA variant: pin by image.tag instead" -}}
{{- end -}}
{{- toJson $p -}}
{{- end -}}

{{/* The public edge. */}}
{{- define "sightline.problems.edge" -}}
{{- $p := list -}}
{{- $ingress := .Values.ingest.ingress -}}
{{- $service := .Values.ingest.service -}}
{{- if and $ingress.enabled (not $ingress.tlsSecretName) -}}
{{- $p = append $p "ingest.ingress.enabled without ingest.ingress.tlsSecretName: ingress controllers speak HTTP/2, and so gRPC, only over TLS" -}}
{{- end -}}
{{- if and $ingress.enabled (not $ingress.host) -}}
{{- $p = append $p "ingest.ingress.enabled without ingest.ingress.host: name the host that clients call" -}}
{{- end -}}
{{- if and (or $ingress.enabled (ne $service.type "ClusterIP")) (include "sightline.insecure" .) -}}
{{- $p = append $p "insecure.confirm is set and ingest is opened to the outside (ingest.ingress or ingest.service.type): anybody could use it; set auth.secretName" -}}
{{- end -}}
{{- if and $service.loadBalancerSourceRanges (ne $service.type "LoadBalancer") -}}
{{- $p = append $p (printf "ingest.service.loadBalancerSourceRanges has no effect on a Service of type %q, and would not keep anybody out" $service.type) -}}
{{- end -}}
{{- toJson $p -}}
{{- end -}}

{{/* What others must find. */}}
{{- define "sightline.problems.monitoring" -}}
{{- $p := list -}}
{{- $m := .Values.monitoring -}}
{{- range $kind, $on := dict "ServiceMonitor" $m.serviceMonitor.enabled "PrometheusRule" $m.rules.enabled -}}
{{- if and $on (not ($.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" $kind))) -}}
{{- $p = append $p (printf "monitoring wants a %s, a kind that the cluster does not have: install the Prometheus operator first (for helm template: --api-versions monitoring.coreos.com/v1/%s)" $kind $kind) -}}
{{- end -}}
{{- end -}}
{{- if and $m.serviceMonitor.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.metricsFrom) -}}
{{- $p = append $p "monitoring.serviceMonitor.enabled and networkPolicy.metricsFrom is empty: Prometheus would be kept out; say where it runs" -}}
{{- end -}}
{{- toJson $p -}}
{{- end -}}

{{/* A service of mode "distributed". */}}
{{- define "sightline.problems.service" -}}
{{- $p := include "sightline.problems.grace" . | fromJsonArray -}}
{{- $own := index .root.Values .name -}}
{{- $scale := $own.autoscaling -}}
{{- if $scale.enabled -}}
{{- if gt (int $scale.minReplicas) (int $scale.maxReplicas) -}}
{{- $p = append $p (printf "%s.autoscaling.minReplicas (%d) is above maxReplicas (%d)" .name (int $scale.minReplicas) (int $scale.maxReplicas)) -}}
{{- end -}}
{{- $queue := default 0 $scale.targetQueueDepth -}}
{{- if not (or $scale.targetCPU $scale.targetMemory $queue) -}}
{{- $p = append $p (printf "%s.autoscaling.enabled and every target is 0: there is nothing to scale by" .name) -}}
{{- end -}}
{{- range $resource, $target := dict "cpu" $scale.targetCPU "memory" $scale.targetMemory -}}
{{- if and $target (not (dig "requests" $resource "" $own.resources)) -}}
{{- $p = append $p (printf "%s.autoscaling scales by %s, in percent of the request, and %s.resources.requests.%s is not set" $.name $resource $.name $resource) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $p -}}
{{- end -}}

{{/* A pod that is killed before it has drained loses what it held. */}}
{{- define "sightline.problems.grace" -}}
{{- $key := include "sightline.valuesKey" .name -}}
{{- $given := int (index .root.Values $key).terminationGracePeriodSeconds -}}
{{- $bound := int (include "sightline.drainBound" .) -}}
{{- if and $given (le $given $bound) -}}
{{- list (printf "%s.terminationGracePeriodSeconds is %d: a stop may take up to %d s (preStopSeconds, server.lameDuckSeconds, and twice drainSeconds for each service of the pod), so it must be more, or 0 for just enough" $key $given $bound) | toJson -}}
{{- else -}}
[]
{{- end -}}
{{- end -}}
