{{/* What selects the pods; never changed, a DaemonSet's selector is immutable. */}}
{{- define "nsagent.selector" -}}
app.kubernetes.io/name: nsagent
{{- end }}

{{- define "nsagent.labels" -}}
{{ include "nsagent.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "nsagent.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
