//! The admin API as other releases, and programs that are not ours, know it.
//!
//! `schema.txt` is what the compiled schema says, one line for each message, enum and call. Lines and
//! fields may be added there; a change of a line that was released breaks who speaks it.

use std::fmt::Write;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, MethodDescriptorProto,
};

const COMPILED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/schema.bin"));

#[test]
fn the_schema_keeps_its_names_numbers_and_types() {
    let schema = FileDescriptorSet::decode(COMPILED).expect("written by build.rs");
    let mut text = String::new();
    for file in &schema.file {
        writeln!(text, "package {}", file.package()).expect("memory");
        file.message_type.iter().for_each(|message| text += &message_line(message));
        file.enum_type.iter().for_each(|values| text += &enum_line(values));
        for service in &file.service {
            service.method.iter().for_each(|call| text += &call_line(service.name(), call));
        }
    }
    let known = include_str!("schema.txt");
    let new: Vec<&str> = text.lines().filter(|line| !known.lines().any(|k| k == *line)).collect();
    assert_eq!(new, [""; 0], "not in schema.txt");
    assert_eq!(text, known);
}

fn message_line(message: &DescriptorProto) -> String {
    assert!(message.nested_type.is_empty() && message.enum_type.is_empty(), "not shown: {message:?}");
    let fields: Vec<String> = message.field.iter().map(|field| field_text(field, message)).collect();
    format!("message {}: {}", message.name(), fields.join(", ")).trim_end().to_owned() + "\n"
}

fn field_text(field: &FieldDescriptorProto, message: &DescriptorProto) -> String {
    let choice = field.oneof_index.map(|index| message.oneof_decl[index as usize].name());
    let how = match (field.label(), field.proto3_optional(), choice) {
        (Label::Repeated, ..) => "repeated ".to_owned(),
        (_, true, _) => "optional ".to_owned(),
        (_, _, Some(choice)) => format!("{choice} or "),
        _ => String::new(),
    };
    let kind = match field.r#type() {
        Type::Message | Type::Enum => last_part(field.type_name()).to_owned(),
        plain => plain.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    format!("{} {how}{kind} {}", field.number(), field.name())
}

fn enum_line(values: &EnumDescriptorProto) -> String {
    let values_text: Vec<String> =
        values.value.iter().map(|value| format!("{} {}", value.number(), value.name())).collect();
    format!("enum {}: {}\n", values.name(), values_text.join(", "))
}

fn call_line(service: &str, call: &MethodDescriptorProto) -> String {
    let stream = |yes| if yes { "stream " } else { "" };
    let (takes, gives) = (last_part(call.input_type()), last_part(call.output_type()));
    format!(
        "call {service}.{}: {}{takes} -> {}{gives}\n",
        call.name(),
        stream(call.client_streaming()),
        stream(call.server_streaming()),
    )
}

fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}
