{{- define "headrace.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "headrace.labels" -}}
app.kubernetes.io/name: headrace
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Where the broker of that number is reached by the others: its name in the headless service. */}}
{{- define "headrace.host" -}}
{{- $name := include "headrace.name" .root -}}
{{- printf "%s-%d.%s-peers.%s.svc.%s" $name (int .number) $name .root.Release.Namespace .root.Values.cluster.domain -}}
{{- end -}}

{{- define "headrace.secret" -}}
{{- required "secretName: make a Secret with the cluster's secret first (values.yaml says how), and name it" .Values.secretName -}}
{{- end -}}
