{{/*
The entries of imagePullSecretsCrs as a JSON list; empty if there are no credentials. Everything about them is checked here and not in the
schema, whose messages say what is wrong but not what to do. No message contains a password.
*/}}
{{- define "apparate.credentials" -}}
{{- $given := .Values.imagePullSecretsCrs -}}
{{- $isMap := kindIs "map" $given -}}
{{- $entries := list -}}
{{- $servers := dict -}}
{{- range $number, $entry := $isMap | ternary (list $given) ($given | default list) -}}
{{- $where := $isMap | ternary "imagePullSecretsCrs" (printf "imagePullSecretsCrs[%d]" $number) -}}
{{- include "apparate.checkCredentialTypes" (dict "where" $where "entry" $entry) -}}
{{- $values := compact (list $entry.dockerUsername $entry.dockerPassword $entry.dockerServer) -}}
{{- if or $values (not $isMap) -}}
{{- include "apparate.checkCredential" (dict "where" $where "entry" $entry) -}}
{{- if hasKey $servers $entry.dockerServer -}}
{{- fail (printf "imagePullSecretsCrs names %s twice; keep one of the two entries" $entry.dockerServer) -}}
{{- end -}}
{{- $_ := set $servers $entry.dockerServer true -}}
{{- $entries = append $entries $entry -}}
{{- end -}}
{{- end -}}
{{- toJson $entries -}}
{{- end -}}

{{- define "apparate.checkCredentialTypes" -}}
{{- $keys := list "dockerUsername" "dockerPassword" "dockerServer" -}}
{{- $where := .where -}}
{{- if not (kindIs "map" .entry) -}}
{{- fail (printf "%s is a %s; give a map of dockerUsername, dockerPassword and dockerServer" $where (kindOf .entry)) -}}
{{- end -}}
{{- range $key, $value := .entry -}}
{{- if not (has $key $keys) -}}
{{- fail (printf "%s.%s is unknown; the keys are %s" $where $key (join ", " $keys)) -}}
{{- end -}}
{{- if not (or (kindIs "string" $value) (kindIs "invalid" $value)) -}}
{{- fail (printf "%s.%s is not text; put it in quotes, on the command line with --set-string" $where $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "apparate.checkCredential" -}}
{{- $where := .where -}}
{{- $entry := .entry -}}
{{- if not $entry.dockerServer -}}
{{- fail (printf "%s.dockerServer is empty; give the host of the registry, such as registry.example.com" $where) -}}
{{- end -}}
{{- range list "dockerUsername" "dockerPassword" -}}
{{- if not (get $entry .) -}}
{{- fail (printf "%s.%s is empty; a registry that needs no credentials needs no entry either" $where .) -}}
{{- end -}}
{{- end -}}
{{- $server := $entry.dockerServer -}}
{{- $host := regexReplaceAll "^([A-Za-z]+://)?([^/\\s]*).*$" (trim $server) "${2}" -}}
{{- if not (regexMatch "^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\\[[0-9A-Fa-f:]+\\])(:[0-9]{1,5})?$" $server) -}}
{{- fail (printf "%s.dockerServer is %q; give the host of the registry, and its port if need be, without scheme, path and blanks: %s" $where $server ($host | default "registry.example.com")) -}}
{{- end -}}
{{- if contains ":" $entry.dockerUsername -}}
{{- fail (printf "%s.dockerUsername contains a colon, which no registry can tell from the beginning of the password; give the name alone" $where) -}}
{{- end -}}
{{- range list "dockerUsername" "dockerPassword" -}}
{{- if ne (get $entry .) (get $entry . | trim) -}}
{{- fail (printf "%s.%s begins or ends with a blank or a line break; remove it (in YAML, | keeps the line break, |- does not)" $where .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
