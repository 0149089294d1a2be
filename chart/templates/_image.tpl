{{/* The image's reference; every pod of this chart runs it. */}}
{{- define "apparate.image" -}}
{{- $reference := "" -}}
{{- if kindIs "string" .Values.image -}}
{{- $reference = include "apparate.imageOfString" . -}}
{{- else -}}
{{- $reference = include "apparate.imageOfMap" . -}}
{{- end -}}
{{- if hasSuffix ":latest" (splitList "@" $reference | first) -}}
{{- fail (printf "image: %s has the tag latest, which changes nodes whenever their pods start again; name a version, such as %s" $reference .Chart.AppVersion) -}}
{{- end -}}
{{- $reference -}}
{{- end -}}

{{- define "apparate.imageOfString" -}}
{{- $given := .Values.image -}}
{{- if not $given -}}
{{- fail "image is empty; give a reference such as registry.example.com/apparate/apparate:1.0.0, or leave it out" -}}
{{- end -}}
{{- if regexMatch "://|\\s" $given -}}
{{- fail (printf "image: %s is no reference; give it without a scheme and without blanks: %s" $given (regexReplaceAll "^[a-z]+://|\\s" $given "")) -}}
{{- end -}}
{{- $parts := splitList "/" $given -}}
{{- $hasHost := and (gt (len $parts) 1) (regexMatch "[.:]|^localhost$" (first $parts)) -}}
{{- if and .Values.global.imageRegistry $hasHost -}}
{{- $parts = rest $parts -}}
{{- end -}}
{{- if .Values.global.imageRegistry -}}
{{- $parts = prepend $parts .Values.global.imageRegistry -}}
{{- end -}}
{{- $reference := join "/" $parts -}}
{{- if regexMatch "[:@]" (last $parts) -}}
{{- $reference -}}
{{- else -}}
{{- printf "%s:%s" $reference .Chart.AppVersion -}}
{{- end -}}
{{- end -}}

{{- define "apparate.imageOfMap" -}}
{{- $image := .Values.image -}}
{{- if not $image.repository -}}
{{- fail "image.repository is empty; give the repository in the registry, such as apparate/apparate" -}}
{{- end -}}
{{- if regexMatch "[:@]" $image.repository -}}
{{- fail (printf "image.repository is %s; give the tag as image.tag, a digest as image.digest, the registry as image.registry" $image.repository) -}}
{{- end -}}
{{- $registry := .Values.global.imageRegistry | default $image.registry -}}
{{- if regexMatch "://|/$" ($registry | default "") -}}
{{- fail (printf "the image's registry is %s; give the host alone: %s" $registry (regexReplaceAll "^[a-z]+://" $registry "" | trimSuffix "/")) -}}
{{- end -}}
{{- $reference := printf "%s:%s" $image.repository ($image.tag | default .Chart.AppVersion) -}}
{{- if $registry -}}
{{- $reference = printf "%s/%s" $registry $reference -}}
{{- end -}}
{{- if $image.digest -}}
{{- if not (regexMatch "^sha256:[0-9a-f]{64}$" $image.digest) -}}
{{- fail (printf "image.digest is %s; give sha256: and 64 hexadecimal digits, as skopeo inspect prints them" $image.digest) -}}
{{- end -}}
{{- $reference = printf "%s@%s" $reference $image.digest -}}
{{- end -}}
{{- $reference -}}
{{- end -}}

{{- define "apparate.imagePullPolicy" -}}
{{- if kindIs "map" .Values.image -}}
{{- .Values.image.pullPolicy | default "IfNotPresent" -}}
{{- else -}}
IfNotPresent
{{- end -}}
{{- end -}}
